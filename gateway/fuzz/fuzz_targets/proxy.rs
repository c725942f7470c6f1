#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gimbal_gateway_fuzz::proxy::proxy(data));
