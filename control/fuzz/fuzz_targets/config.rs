#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gimbal_control_fuzz::binary::config_rules::config(data));
