//! What only the nodes of one mail cluster know: made with the cluster, kept for good, part of its spec.

use super::{Result, StoreError, Write};
use phalanx_model::{ClusterKind, Fleet, HostName, Name};
use phalanx_plan::spec::mail::MailSecrets;
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Write {
    /// Makes what new mail clusters need. A cluster that was given another name in the DNS gets a certificate for that one.
    pub(super) async fn write_secrets(&mut self, fleet: &Fleet) -> Result<()> {
        let mut all = (*self.world.mail_secrets).clone();
        for (name, cluster) in fleet.clusters.iter().filter(|(_, cluster)| cluster.kind == ClusterKind::Mail) {
            let Some(mail) = &cluster.mail else { continue };
            let known = all.get(name);
            if known.is_some_and(|(host_name, _)| *host_name == mail.host_name) {
                continue;
            }
            let secrets = make(&mail.host_name, known.map(|(_, secrets)| secrets))?;
            sqlx::query("INSERT OR REPLACE INTO mail_secret VALUES (?, ?, ?)")
                .bind(name.as_str())
                .bind(mail.host_name.as_str())
                .bind(serde_json::to_string(&secrets).expect("secrets are plain data"))
                .execute(&mut *self.tx)
                .await?;
            all.insert(name.clone(), (mail.host_name.clone(), secrets));
        }
        all.retain(|name, _| fleet.clusters.contains_key(name));
        sqlx::query("DELETE FROM mail_secret WHERE cluster NOT IN (SELECT value FROM json_each(?))")
            .bind(serde_json::to_string(&all.keys().collect::<Vec<_>>()).expect("a list of texts"))
            .execute(&mut *self.tx)
            .await?;
        self.world.mail_secrets = Arc::new(all);
        Ok(())
    }
}

/// Each mail cluster's secrets, with the name that its certificate is for.
pub type MailSecretsByCluster = BTreeMap<Name, (HostName, MailSecrets)>;

pub(super) async fn load(tx: &mut SqliteConnection) -> Result<MailSecretsByCluster> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT cluster, host_name, body FROM mail_secret").fetch_all(tx).await?;
    let parse = |(cluster, host_name, body): (String, String, String)| {
        let what = || format!("the secrets of mail cluster {cluster}");
        let host_name = host_name.parse().map_err(|e| StoreError::corrupt(what(), e))?;
        let secrets = serde_json::from_str(&body).map_err(|e| StoreError::corrupt(what(), e))?;
        Ok((cluster.parse().map_err(|e| StoreError::corrupt(what(), e))?, (host_name, secrets)))
    };
    rows.into_iter().map(parse).collect()
}

/// The secrets alone, as a spec takes them.
pub(super) fn bare(secrets: &MailSecretsByCluster) -> BTreeMap<Name, MailSecrets> {
    secrets.iter().map(|(cluster, (_, secrets))| (cluster.clone(), secrets.clone())).collect()
}

/// New secrets; the seed stays where there was one, since addresses that were rewritten with it are still out in the world.
fn make(host_name: &HostName, before: Option<&MailSecrets>) -> Result<MailSecrets> {
    let seed = before.map_or_else(|| crate::secret::hex(&rand::random::<[u8; 32]>()), |known| known.seed.clone());
    let (tls_chain_pem, tls_key_pem) = crate::ca::self_signed(host_name).map_err(|error| {
        tracing::error!(%host_name, error = format!("{error:#}"), "no certificate could be made");
        StoreError::Busy("no certificate could be made for the mail cluster; see the panel's log")
    })?;
    Ok(MailSecrets { seed, tls_chain_pem, tls_key_pem })
}
