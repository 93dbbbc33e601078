//! The forms of answers about mail.

use utoipa::ToSchema;

/// A domain that mail is taken for.
#[derive(ToSchema)]
pub struct MailDomain {
    name: String,
    account: String,
    logical_server: String,
    state: MailState,
    dkim: DkimKey,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// A domain that mail is taken for, with what its owner has to put into the DNS.
#[derive(ToSchema)]
pub struct MailDomainInFull {
    name: String,
    account: String,
    logical_server: String,
    state: MailState,
    dkim: DkimKey,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
    dns: Vec<crate::api::mail::Record>,
}

/// The public half of the key that signs a domain's mail.
#[derive(ToSchema)]
pub struct DkimKey {
    selector: String,
    /// What follows p= in the DNS.
    public_base64: String,
}

/// Whether mail is taken and can be read.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum MailState {
    Active,
    Suspended,
}

/// A mailbox. Its password is never shown.
#[derive(ToSchema)]
pub struct Mailbox {
    address: String,
    /// Its number, which no other mailbox ever has.
    id: u64,
    quota_mib: u32,
    state: MailState,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// An address whose mail goes elsewhere.
#[derive(ToSchema)]
pub struct MailAlias {
    source: String,
    targets: Vec<String>,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}
