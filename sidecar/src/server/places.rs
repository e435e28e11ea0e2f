//! How many connections are open: of all clients of one listener together, and of one of them.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

use super::quota::Client;

/// The places of one listener.
#[derive(Clone, Debug)]
pub(super) struct Places {
    taken: Arc<Mutex<HashMap<Client, usize>>>,
    most: usize,
    most_of_one: usize,
}

/// One place, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: Client,
}

impl Places {
    /// So many, of which one client leaves a quarter to others.
    pub(super) fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most, most_of_one: most - most / 4 }
    }

    /// A place for one more connection of this client; `None` where there is none.
    pub(super) fn take(&self, client: Client) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= self.most_of_one || taken.values().sum::<usize>() >= self.most {
            return None;
        }
        taken.insert(client.clone(), own + 1);
        drop(taken);
        Some(Place { places: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}

/// A connection to a socket of this machine, which has a place as long as it is open.
#[derive(Debug)]
pub(super) struct Local {
    stream: UnixStream,
    _place: Place,
}

impl Local {
    /// The connection in its place.
    pub(super) const fn new(stream: UnixStream, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl Connected for Local {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Local {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Local {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_to_others_and_a_place_is_free_again() {
        let places = Places::new(8);
        let take = |user| places.take(Client::User(user));
        let mut first: Vec<_> = (0..6).map(|_| take(1).unwrap()).collect();
        assert!(take(1).is_none(), "two are for others");
        let others = [take(2).unwrap(), take(3).unwrap()];
        assert!(take(4).is_none(), "there are no more");
        drop(others);
        assert!(take(1).is_none());
        first.pop();
        let again = take(1).unwrap();
        assert!(take(1).is_none());
        drop((first, again));
        assert!(places.lock().is_empty(), "nobody is remembered who has none");
    }
}
