#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gimbal_control_fuzz::edge_rules::edge(data));
