//! One host of a topology as the supervisor sees it, whatever it is made of.

use anyhow::Result;

use crate::container::Container;
use crate::guest::machine::GuestMachine;
use crate::protocol::Action;

/// One host, with or without power.
#[derive(Debug)]
pub enum Machine {
    /// On the machine's own kernel.
    Container(Box<Container>),
    /// With a kernel of its own.
    Guest(Box<GuestMachine>),
}

impl Machine {
    /// What a person reads about its state; see [`crate::protocol::HostStatus::state`].
    pub fn state(&mut self) -> Result<String> {
        match self {
            Self::Container(container) => container.state(),
            Self::Guest(guest) => guest.state(),
        }
    }

    /// Gives it power and waits until all its services have started.
    pub fn boot(&mut self) -> Result<()> {
        match self {
            Self::Container(container) => container.boot(),
            Self::Guest(guest) => guest.boot(),
        }
    }

    /// Does what was asked for.
    pub fn act(&mut self, action: Action) -> Result<()> {
        match self {
            Self::Container(container) => act_on_container(container, action),
            Self::Guest(guest) => act_on_guest(guest, action),
        }
    }
}

fn act_on_container(container: &mut Container, action: Action) -> Result<()> {
    match action {
        Action::Kill => container.kill(),
        Action::Boot => container.boot(),
        Action::Freeze => container.set_frozen(true),
        Action::Thaw => container.set_frozen(false),
        Action::Cut => container.set_cut(true),
        Action::Heal => container.set_cut(false),
        Action::Pace(pace) => container.set_pace(pace),
        Action::HangStorage => container.set_storage_hung(true),
        Action::ReleaseStorage => container.set_storage_hung(false),
        Action::LoseStorage => container.set_storage_lost(true),
        Action::ReturnStorage => container.set_storage_lost(false),
    }
}

fn act_on_guest(guest: &mut GuestMachine, action: Action) -> Result<()> {
    match action {
        Action::Kill => guest.kill(),
        Action::Boot => guest.boot(),
        Action::Freeze => guest.set_frozen(true),
        Action::Thaw => guest.set_frozen(false),
        Action::Cut => guest.set_cut(true),
        Action::Heal => guest.set_cut(false),
        Action::Pace(pace) => guest.set_pace(pace),
        Action::HangStorage | Action::ReleaseStorage | Action::LoseStorage | Action::ReturnStorage => {
            anyhow::bail!("a guest mounts its storage itself: freeze, cut or kill the NAS, or umount in the guest")
        }
    }
}
