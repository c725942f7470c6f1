//! A configuration of any text. Included by the tests of the binary's library, too.

use super::Config;

/// A text is refused with a reason or read; what is read is within its bounds or named, and can be written. Sizes are written with
/// one digit after the point, so it is what was written that stays the same.
pub(super) fn check_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(error) => {
            assert!(!format!("{error:#}").is_empty());
            return;
        }
    };
    let within = config.check_bounds();
    if let Err(error) = &within {
        assert!(!format!("{error:#}").is_empty());
    }
    // Keys in the file are never written again.
    if within.is_ok() && config.control.api.keys.is_empty() {
        let again = read_again(&config);
        assert_eq!(read_again(&again), again);
    }
    let names_no_file = !text.contains("file") && !text.contains("certificate") && !text.contains("_ca");
    if names_no_file && let Err(error) = config.control.check(true) {
        assert!(error.to_string().starts_with("control."), "{error}");
    }
}

fn read_again(config: &Config) -> Config {
    let written = toml::to_string(config).expect("what was read can be written");
    Config::parse(&written).expect("what was written can be read")
}

/// For the fuzz target.
#[cfg(not(test))]
pub fn config(data: &[u8]) {
    check_config(data);
}
