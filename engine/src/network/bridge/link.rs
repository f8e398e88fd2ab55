//! Interfaces of this host, by rtnetlink (rtnetlink(7)).

use std::io;
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};
use tokio_util::task::AbortOnDropHandle;

use super::PREFIX;

/// A conversation with the kernel; it is of the network name space that it was begun in.
pub(super) struct Links {
    handle: Handle,
    _conversation: AbortOnDropHandle<()>,
}

/// One interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) is_bridge: bool,
}

impl Links {
    /// Must be called within a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (conversation, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, _conversation: AbortOnDropHandle::new(tokio::spawn(conversation)) })
    }

    pub(super) async fn find(&self, name: &str) -> io::Result<Option<Link>> {
        let answer = self.handle.link().get().match_name(name).execute().try_next().await;
        match answer.map_err(error) {
            Ok(message) => Ok(message.map(|message| link(&message))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names of all interfaces.
    pub(super) async fn names(&self) -> io::Result<Vec<String>> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(error)?;
        let name = |attribute: LinkAttribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(|message| message.attributes.into_iter().find_map(name)).collect())
    }

    /// Makes a bridge that passes frames on at once: it is in no loop that could be found out.
    pub(super) async fn make_bridge(&self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let bridge = LinkBridge::new(name).address(mac.to_vec()).forward_delay(0).build();
        self.handle.link().add(bridge).execute().await.map_err(error)
    }

    /// Gives an interface an address, which it may have.
    pub(super) async fn set_address(&self, link: Link, address: Ipv4Addr) -> io::Result<()> {
        let request = self.handle.address().add(link.index, address.into(), PREFIX).replace();
        request.execute().await.map_err(error)
    }

    pub(super) async fn plug(&self, link: Link, bridge: Link) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(link.index).controller(bridge.index).build()).await
    }

    pub(super) async fn up(&self, link: Link) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(link.index).up().build()).await
    }

    async fn set(&self, message: LinkMessage) -> io::Result<()> {
        self.handle.link().set(message).execute().await.map_err(error)
    }

    /// Removes an interface, which may be gone.
    pub(super) async fn remove(&self, link: Link) -> io::Result<()> {
        match self.handle.link().del(link.index).execute().await.map_err(error) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }
}

fn link(message: &LinkMessage) -> Link {
    let is_bridge = message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    });
    Link { index: message.header.index, is_bridge }
}

/// The kernel's answer as the error it is.
fn error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(answer) => answer.to_io(),
        other => io::Error::other(other),
    }
}
