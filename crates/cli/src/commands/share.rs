//! `phalanx share`: the storage that all nodes of a cluster mount.

use super::resource::{ListArgs, Resource};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::Subcommand;
use phalanx_model::share::SharePath;
use phalanx_model::{Name, ShareKind};
use serde_json::{Map, Value, json};

const SHARE: Resource = Resource {
    noun: "share",
    path: "/shares",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("KIND", "/kind"),
        Column::new("NAS", "/nas"),
        Column::new("PATH", "/path"),
    ],
    first: "`phalanx share add content --kind nfs-managed --nas nas --path /srv/nas/web` makes the first.",
};

/// How a share reaches the nodes.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// A directory that exists on each node already
    Local,
    /// Exported over NFS 4.2 by the master of a nas cluster
    NfsManaged,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum ShareCommand {
    /// Make a share known
    #[command(after_help = "\
Examples:
  phalanx share add content --kind nfs-managed --nas nas --path /srv/nas/web
  phalanx share add content --kind local --path /srv/content         one machine, or a SAN file system")]
    Add {
        /// Its name; nodes mount it at /srv/phalanx/NAME
        name: Name,
        /// How it reaches the nodes
        #[arg(long)]
        kind: Kind,
        /// The nas cluster whose master keeps it
        #[arg(long, value_name = "CLUSTER", required_if_eq("kind", "nfs-managed"))]
        nas: Option<Name>,
        /// Where the content lies on the machine that keeps it
        #[arg(long)]
        path: SharePath,
    },
    /// List the shares
    List(ListArgs),
    /// Show one in full
    Show {
        /// The share
        name: Name,
    },
    /// Say where a share lies that no cluster mounts; its content is not moved
    #[command(after_help = "\
Example:
  phalanx share change content --nas nas2 --path /srv/nas/web")]
    Change {
        /// The share
        name: Name,
        /// The nas cluster whose master keeps it
        #[arg(long, value_name = "CLUSTER", conflicts_with = "no_nas")]
        nas: Option<Name>,
        /// No nas cluster keeps it: the master of the cluster that mounts it does
        #[arg(long)]
        no_nas: bool,
        /// Where the content lies on the machine that keeps it
        #[arg(long)]
        path: Option<SharePath>,
    },
    /// Forget a share that no cluster uses; its content stays where it is
    Remove {
        /// The share
        name: Name,
    },
}

/// Runs one.
pub fn run(command: ShareCommand, session: &Session) -> Result<(), Failure> {
    match command {
        ShareCommand::Add { name, kind, nas, path } => {
            let kind = match kind {
                Kind::Local => ShareKind::Local,
                Kind::NfsManaged => ShareKind::NfsManaged,
            };
            let next = format!("`phalanx cluster add web --kind web --master SERVER --share {name}`");
            SHARE.add(session, &json!({"name": name, "kind": kind, "nas": nas, "path": path}), &next).map(drop)
        }
        ShareCommand::List(args) => SHARE.list(session, &args, ""),
        ShareCommand::Show { name } => SHARE.show(session, name.as_str()),
        ShareCommand::Change { name, nas, no_nas, path } => {
            let mut patch = Map::new();
            if no_nas || nas.is_some() {
                patch.insert("nas".into(), json!(nas));
            }
            if let Some(path) = path {
                patch.insert("path".into(), json!(path));
            }
            SHARE.change(session, name.as_str(), |_| Ok(Value::Object(patch)))
        }
        ShareCommand::Remove { name } => SHARE.remove(session, name.as_str(), ""),
    }
}
