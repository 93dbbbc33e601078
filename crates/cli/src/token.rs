//! Where the API token comes from: a file that was named, the environment, or the file that `phalanx panel init` leaves for
//! root. Never the command line, which every user of the machine can read.

use crate::failure::Failure;
use std::io::ErrorKind;
use std::path::Path;

/// Where `phalanx panel init` leaves the first administrator's token.
pub const TOKEN_FILE_DEFAULT: &str = "/var/lib/phalanx/panel/admin.token";

/// More than any token has.
const TOKEN_BYTES_MAX: usize = 1024;

/// The token to use, or none where none was named and the default file can't be read.
///
/// # Errors
/// When the named file can't be read, or what was found is no token.
pub fn find(named_file: Option<&Path>, environment: Option<String>) -> Result<Option<String>, Failure> {
    if let Some(path) = named_file {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(
                format!("cannot read the token file {}: {error}", path.display()),
                "name a file that you may read",
            )
        })?;
        return checked(&text, &path.display().to_string()).map(Some);
    }
    if let Some(token) = environment.filter(|token| !token.trim().is_empty()) {
        return checked(&token, "PHALANX_TOKEN").map(Some);
    }
    match std::fs::read_to_string(TOKEN_FILE_DEFAULT) {
        Ok(text) => checked(&text, TOKEN_FILE_DEFAULT).map(Some),
        // A panel elsewhere, or another user: the panel's own refusal says the rest.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(Failure::Other(anyhow::anyhow!("cannot read {TOKEN_FILE_DEFAULT}: {error}"))),
    }
}

fn checked(text: &str, source: &str) -> Result<String, Failure> {
    let token = text.trim();
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::usage(
            format!("{source} holds no API token"),
            "a token is one line of printable ASCII, beginning with phxapi_",
        ));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_file_goes_before_the_environment() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("token");
        std::fs::write(&file, "phxapi_file\n").expect("a file");
        let found = find(Some(&file), Some("phxapi_env".into())).expect("a token");
        assert_eq!(found.as_deref(), Some("phxapi_file"));
        assert_eq!(find(None, Some(" phxapi_env\n".into())).expect("a token").as_deref(), Some("phxapi_env"));
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(find(Some(&directory.path().join("absent")), None).is_err());
        let failure = find(None, Some("secret\nInjected: header".into())).expect_err("two lines");
        assert!(!failure.text().contains("secret"), "{}", failure.text());
    }
}
