#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gimbal_control_fuzz::store_rules::store(data));
