//! `gimbal cert`: an authority and certificates for one's own machines. For the public, use certificates of a public authority.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Clocks of clients may be behind by so much.
const SKEW: Duration = Duration::hours(1);

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where the files go; made when absent
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: PathBuf,
    /// Names and addresses of the server
    #[arg(long = "name", default_values = ["localhost", "127.0.0.1", "::1"], value_name = "NAME")]
    names: Vec<String>,
    /// Make a certificate for a client of this name, too
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// How long they are valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650), value_name = "DAYS")]
    days: u16,
}

/// An authority that exists for this run alone: its key is not kept, so that nobody can sign anything else with it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    until: OffsetDateTime,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let (authority, ca) = Authority::new(OffsetDateTime::now_utc() + Duration::days(args.days.into()))?;
    write(&args.dir.join("ca.pem"), &ca, 0o644)?;
    authority.make(&args.dir, "server", args.names.clone(), ExtendedKeyUsagePurpose::ServerAuth)?;
    for client in &args.clients {
        let is_file = client.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        ensure!(is_file && !client.starts_with('.'), "{client:?} is no name of a client");
        authority.make(&args.dir, client, vec![client.clone()], ExtendedKeyUsagePurpose::ClientAuth)?;
    }
    let dir = args.dir.display();
    gimbal::say!("{dir}/ca.pem      the authority: give it to clients (--ca)");
    gimbal::say!("{dir}/server.pem  certificate of {}, and its key {dir}/server.key", args.names.join(", "));
    for client in &args.clients {
        gimbal::say!("{dir}/{client}.pem  certificate of a client, and its key {dir}/{client}.key");
    }
    gimbal::say!("They are valid for {} days. Run this again for new ones, in another folder.", args.days);
    Ok(ExitCode::SUCCESS)
}

impl Authority {
    /// With its certificate in PEM form.
    fn new(until: OffsetDateTime) -> Result<(Self, String)> {
        let key = KeyPair::generate().context("no key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "gimbal development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (OffsetDateTime::now_utc() - SKEW, until);
        let pem = params.self_signed(&key).context("the authority cannot be made")?.pem();
        Ok((Self { issuer: Issuer::new(params, key), until }, pem))
    }

    /// Writes `file`.pem and `file`.key below `dir`.
    fn make(&self, dir: &Path, file: &str, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Result<()> {
        let key = KeyPair::generate().context("no key")?;
        let first = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).with_context(|| format!("the names of {file}"))?;
        params.distinguished_name.push(DnType::CommonName, first);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (OffsetDateTime::now_utc() - SKEW, self.until);
        let certificate = params.signed_by(&key, &self.issuer).context("the certificate cannot be signed")?;
        write(&dir.join(format!("{file}.key")), &key.serialize_pem(), 0o600)?;
        write(&dir.join(format!("{file}.pem")), &certificate.pem(), 0o644)
    }
}

/// Never over what is there: somebody may trust it.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
