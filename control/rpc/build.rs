//! Compiles the protos with protox, so that no protoc is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["gimbal.proto", "link.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    // Called, never served: reflection does not list it.
    let gim = protox::compile(["gim.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(gim)?;
    Ok(())
}
