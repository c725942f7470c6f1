#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gimbal_control_fuzz::token_rules::token(data));
