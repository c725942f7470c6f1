#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gimbal_codec_fuzz::round_trip(data));
