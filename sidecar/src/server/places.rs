//! Bounds on open connections: of all clients of one listener together, and of one of them.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tonic::transport::server::{Connected, UdsConnectInfo};

use super::client::Client;

/// Holder of places.
pub(super) trait Holds: Clone + Eq + Hash {
    /// Client that answers for the holder: however many holders a client has, it gets no more places for that.
    type Client: Eq + Hash;

    /// Returns the client that answers for this holder.
    fn client(&self) -> Self::Client;
}

/// Places of one listener, by their holders.
#[derive(Debug)]
pub(super) struct Places<H: Holds> {
    taken: Arc<Mutex<Taken<H>>>,
    most: usize,
    most_of_one: usize,
}

#[derive(Debug)]
struct Taken<H> {
    /// Places of each holder, the oldest first.
    by_holder: HashMap<H, VecDeque<Held>>,
    last: u64,
}

/// A place that is taken.
#[derive(Debug)]
struct Held {
    number: u64,
    spoke: Arc<AtomicBool>,
    gives_way: oneshot::Sender<()>,
}

/// One place, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place<H: Holds> {
    taken: Arc<Mutex<Taken<H>>>,
    holder: H,
    number: u64,
    /// Whether the other end has sent its first bytes.
    spoke: Arc<AtomicBool>,
    /// Resolves once another connection has the place.
    gives_way: oneshot::Receiver<()>,
}

impl<H: Holds> Place<H> {
    /// Makes the wait for the first bytes of the other end, which the place is told of.
    pub(super) fn greeting(&self) -> Greeting {
        Greeting { waited_for: Some((PREFACE, Box::pin(tokio::time::sleep(SILENT)))), spoke: Arc::clone(&self.spoke) }
    }

    /// Returns whether another connection has the place by now; wakes the task once that is so.
    pub(super) fn is_needed(&mut self, context: &mut Context<'_>) -> bool {
        // A channel that has resolved must not be polled again, and a caller that was told may go on to write.
        self.gives_way.is_terminated() || Pin::new(&mut self.gives_way).poll(context).is_ready()
    }
}

impl<H: Holds> Clone for Places<H> {
    fn clone(&self) -> Self {
        Self { taken: Arc::clone(&self.taken), ..*self }
    }
}

impl<H: Holds> Places<H> {
    /// Makes `most` places, of which one client leaves a quarter to others.
    pub(super) fn new(most: usize) -> Self {
        let taken = Taken { by_holder: HashMap::new(), last: 0 };
        Self { taken: Arc::new(Mutex::new(taken)), most, most_of_one: most - most / 4 }
    }

    /// Takes a place for one more connection. Where none is free, a connection that has said nothing yet gives way, of a client
    /// with at least as many places; `None` where there is none: whoever is being served is not ended for somebody new.
    pub(super) fn take(&self, holder: H) -> Option<Place<H>> {
        let mut taken = lock(&self.taken);
        if self.is_full_for(&taken, &holder) {
            taken.end_silent(&holder).then_some(())?;
        }
        Some(self.add(&mut taken, holder))
    }

    /// Takes a place for the newest connection. Where none is free, the oldest connection of the client with the most places gives
    /// way: a bound that refuses the newest would favour who came first, and so would one that ends connections of which nothing
    /// was read yet.
    pub(super) fn take_newest(&self, holder: H) -> Place<H> {
        let mut taken = lock(&self.taken);
        if self.is_full_for(&taken, &holder) {
            taken.end_oldest();
        }
        self.add(&mut taken, holder)
    }

    /// Returns whether there is no place for one more of this holder. A client with all that one may have has more than all others
    /// together.
    fn is_full_for(&self, taken: &Taken<H>, holder: &H) -> bool {
        taken.of(&holder.client()) >= self.most_of_one || taken.all() >= self.most
    }

    fn add(&self, taken: &mut Taken<H>, holder: H) -> Place<H> {
        let (sender, gives_way) = oneshot::channel();
        let spoke = Arc::new(AtomicBool::new(false));
        taken.last = taken.last.saturating_add(1);
        let number = taken.last;
        let held = Held { number, spoke: Arc::clone(&spoke), gives_way: sender };
        taken.by_holder.entry(holder.clone()).or_default().push_back(held);
        Place { taken: Arc::clone(&self.taken), holder, number, spoke, gives_way }
    }
}

impl Held {
    fn is_silent(&self) -> bool {
        !self.spoke.load(Ordering::Relaxed)
    }

    fn end(self) {
        // The send fails where the connection has gone by itself.
        let _ = self.gives_way.send(());
    }
}

impl<H: Holds> Taken<H> {
    fn of(&self, client: &H::Client) -> usize {
        self.by_holder.iter().filter(|(holder, _)| holder.client() == *client).map(|(_, places)| places.len()).sum()
    }

    fn all(&self) -> usize {
        self.by_holder.values().map(VecDeque::len).sum()
    }

    /// Returns the number of places of each client.
    fn by_client(&self) -> HashMap<H::Client, usize> {
        let mut clients = HashMap::new();
        for (holder, places) in &self.by_holder {
            let count = clients.entry(holder.client()).or_insert(0_usize);
            *count = count.saturating_add(places.len());
        }
        clients
    }

    /// Ends the oldest connection that has said nothing, of the client with the most places among those that have such a
    /// connection and no fewer places than the holder's client: no client loses one for the sake of a client that has more.
    /// Returns false where there is none.
    fn end_silent(&mut self, holder: &H) -> bool {
        let (clients, least) = (self.by_client(), self.of(&holder.client()));
        let count = |of: &H| clients.get(&of.client()).copied().filter(|count| *count >= least);
        let silent = |places: &VecDeque<Held>| places.iter().position(Held::is_silent);
        let those = self.by_holder.iter_mut().filter(|(of, places)| count(of).is_some() && silent(places).is_some());
        let most = those.max_by_key(|(of, places)| (count(of), places.len()));
        most.and_then(|(_, places)| places.remove(silent(places)?)).map(Held::end).is_some()
    }

    /// Ends the oldest connection of the client with the most.
    fn end_oldest(&mut self) {
        let clients = self.by_client();
        let those = self.by_holder.iter_mut().filter_map(|(of, places)| Some((*clients.get(&of.client())?, places)));
        // Among holders with as many, the one whose oldest connection is the older.
        let rank = |(count, places): &(usize, &mut VecDeque<Held>)| (*count, places.len(), Reverse(places.front().map(|held| held.number)));
        if let Some(oldest) = those.max_by_key(rank).and_then(|(_, places)| places.pop_front()) {
            oldest.end();
        }
    }
}

impl<H: Holds> Drop for Place<H> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(places) = taken.by_holder.get_mut(&self.holder) {
            places.retain(|held| held.number != self.number);
            if places.is_empty() {
                taken.by_holder.remove(&self.holder);
            }
        }
    }
}

fn lock<H>(taken: &Mutex<Taken<H>>) -> MutexGuard<'_, Taken<H>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Process that holds a connection to a socket of this machine; its user answers for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    user: Client,
    /// Process id, where the system tells it.
    process: Option<i32>,
}

impl Holder {
    /// Returns the holder at the other end of a connection.
    pub(super) fn of(stream: &UnixStream) -> Self {
        stream.peer_cred().map_or(Self { user: Client::Unknown, process: None }, |told| Self::told(told.uid(), told.pid()))
    }

    fn told(user: u32, process: Option<i32>) -> Self {
        // The system tells 0 for a process in another namespace.
        Self { user: Client::of_user(user, process), process: process.filter(|process| *process > 0) }
    }
}

impl Holds for Holder {
    type Client = Client;

    fn client(&self) -> Client {
        self.user.clone()
    }
}

impl Holds for Client {
    type Client = Self;

    fn client(&self) -> Self {
        self.clone()
    }
}

/// Wait for the first bytes of a connection: a client that connects has something to say.
#[derive(Debug)]
pub(super) struct Greeting {
    /// Number of bytes that are still to come, and by when.
    waited_for: Option<(usize, Pin<Box<Sleep>>)>,
    spoke: Arc<AtomicBool>,
}

impl Greeting {
    /// Reads from a connection, and ends one that says nothing.
    pub(super) fn poll_read(
        &mut self,
        stream: Pin<&mut impl AsyncRead>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = stream.poll_read(context, buffer);
        let Some((missing, end)) = &mut self.waited_for else { return read };
        match read {
            Poll::Pending => end.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            Poll::Ready(result) => {
                *missing = missing.saturating_sub(buffer.filled().len().saturating_sub(before));
                if *missing == 0 {
                    self.waited_for = None;
                    self.spoke.store(true, Ordering::Relaxed);
                }
                Poll::Ready(result)
            }
        }
    }
}

/// Length of the client's connection preface (RFC 9113, section 3.4); a request of HTTP/1.1 is longer.
const PREFACE: usize = 24;

/// Longest time of a connection until its first bytes have come.
const SILENT: Duration = Duration::from_secs(5);

/// A connection to a socket of this machine, which ends where its place is needed more.
#[derive(Debug)]
pub(super) struct Local {
    stream: UnixStream,
    place: Place<Holder>,
    greeting: Greeting,
}

impl Local {
    /// Puts a connection into its place.
    pub(super) fn new(stream: UnixStream, place: Place<Holder>) -> Self {
        let greeting = place.greeting();
        Self { stream, place, greeting }
    }
}

impl Connected for Local {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl Local {
    /// Returns an error where the connection has to end. Checked on both ways: a client that takes nothing is not read from
    /// either.
    fn ends(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.place.is_needed(context) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Local {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.ends(context)?;
        let this = &mut *self;
        this.greeting.poll_read(Pin::new(&mut this.stream), context, buffer)
    }
}

impl AsyncWrite for Local {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.ends(context)?;
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ends(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.ends(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    impl Holds for u8 {
        type Client = Self;

        fn client(&self) -> Self {
            *self
        }
    }

    #[test]
    fn one_client_leaves_places_to_others_and_a_place_is_free_again() {
        let places = Places::new(8);
        let take = |holder| places.take(holder).inspect(|place| place.spoke.store(true, Ordering::Relaxed));
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
        assert!(lock(&places.taken).by_holder.is_empty(), "nobody is remembered who has none");
    }

    #[test]
    fn b3_who_has_said_nothing_gives_way_and_nobody_who_spoke() {
        let places = Places::new(8);
        let speaks = |place: &Place<u8>| place.spoke.store(true, Ordering::Relaxed);
        let gave_way = |place: &mut Place<u8>| place.gives_way.try_recv().is_ok();
        let [mut served, mut silent, mut other] = [1, 1, 2].map(|holder| places.take(holder).unwrap());
        [&served, &other].into_iter().for_each(speaks);
        let mut held: Vec<_> = (0..5).map(|_| places.take(3).unwrap()).collect();
        let newest = places.take(4).unwrap();
        assert_eq!(held.iter_mut().map(gave_way).collect::<Vec<_>>(), [true, false, false, false, false], "of whoever has the most");
        held.iter().skip(1).for_each(speaks);
        let newer = places.take(5).unwrap();
        assert!(gave_way(&mut silent) && ![&mut served, &mut other].map(gave_way).contains(&true));
        // Two connections are silent, and their clients hold fewer places than the one that comes.
        assert!(places.take(3).is_none());
        [&newest, &newer].into_iter().for_each(speaks);
        assert!(places.take(6).is_none(), "all have spoken");

        let places = Places::new(8);
        let mut own: Vec<_> = (0..6).map(|_| places.take(1).unwrap()).collect();
        own.iter().take(5).for_each(speaks);
        let newest = places.take(1).unwrap();
        assert_eq!(own.iter_mut().map(gave_way).collect::<Vec<_>>(), [false, false, false, false, false, true], "of its own");
        speaks(&newest);
        assert!(places.take(1).is_none());
    }

    #[test]
    fn b_the_newest_gets_in_and_whoever_holds_the_most_gives_way() {
        let places = Places::new(8);
        let gave_way = |place: &mut Place<u8>| place.gives_way.try_recv().is_ok();
        let mut envoy = places.take_newest(1);
        let mut held: Vec<_> = (0..7).map(|_| places.take_newest(2)).collect();
        assert_eq!(held.iter_mut().map(gave_way).collect::<Vec<_>>(), [true, false, false, false, false, false, false], "of its own");
        let mut starting = places.take_newest(3);
        assert_eq!(held.iter_mut().skip(1).map(gave_way).collect::<Vec<_>>(), [false; 6], "there was room");
        let mut second = places.take_newest(3);
        assert_eq!(held.iter_mut().skip(1).map(gave_way).collect::<Vec<_>>(), [true, false, false, false, false, false]);
        assert!(![&mut envoy, &mut starting, &mut second].map(gave_way).contains(&true));
        drop(held);
        assert_eq!(lock(&places.taken).all(), 3);
    }

    #[test]
    fn b_a_user_with_many_processes_takes_no_place_from_a_user_with_one() {
        let places = Places::new(8);
        let gave_way = |place: &mut Place<Holder>| place.gives_way.try_recv().is_ok();
        let mut envoy = places.take_newest(Holder::told(1, Some(1)));
        let mut forked: Vec<_> = (10..30).map(|process| places.take_newest(Holder::told(2, Some(process)))).collect();
        let mut other = places.take_newest(Holder::told(3, Some(2)));
        assert!(!gave_way(&mut envoy) && !gave_way(&mut other));
        assert_eq!(forked.iter_mut().filter_map(|place| gave_way(place).then_some(())).count(), 14, "three quarters are the most of one");
        // Among the processes of one user the one with the most gives way.
        let places = Places::new(8);
        let mut envoy = places.take_newest(Holder::told(1, Some(1)));
        let mut held: Vec<_> = (0..20).map(|_| places.take_newest(Holder::told(1, Some(2)))).collect();
        assert!(!gave_way(&mut envoy));
        assert_eq!(held.iter_mut().filter_map(|place| gave_way(place).then_some(())).count(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn b_a_connection_that_says_nothing_ends_and_one_that_spoke_may_be_silent() {
        let places = Places::new(8);
        for (said, ends) in [(0, true), (PREFACE - 1, true), (PREFACE, false)] {
            let (mut client, server) = UnixStream::pair().unwrap();
            let mut local = Local::new(server, places.take(Holder::told(1, None)).unwrap());
            client.write_all(&vec![b'P'; said]).await.unwrap();
            local.read_exact(&mut vec![0; said]).await.unwrap();
            let read = tokio::time::timeout(SILENT * 2, local.read(&mut [0])).await;
            assert_eq!(read.is_ok(), ends, "{said}");
            assert!(read.is_err() || read.is_ok_and(|read| read.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)));
        }
    }

    #[tokio::test]
    async fn b_a_connection_that_takes_nothing_ends_where_its_place_is_needed() {
        let places = Places::new(1);
        let (client, server) = UnixStream::pair().unwrap();
        let mut local = Local::new(server, places.take_newest(Holder::told(1, None)));
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = local.write_all(&[0; 4096]).await {
                    // A caller that was told may try all the same.
                    let (flushed, read) = (local.flush().await, local.read(&mut [0]).await);
                    return [error.kind(), flushed.unwrap_err().kind(), read.unwrap_err().kind()];
                }
            }
        });
        tokio::task::yield_now().await;
        let newest = places.take_newest(Holder::told(2, None));
        assert_eq!(writing.await.unwrap(), [io::ErrorKind::ConnectionAborted; 3]);
        drop((client, newest));
    }

    #[test]
    fn b_users_of_another_process_namespace_are_told_apart_by_user() {
        assert_eq!(Holder::told(1000, Some(7)), Holder { user: Client::User(1000), process: Some(7) });
        assert_ne!(Holder::told(1000, Some(7)), Holder::told(1000, Some(8)));
        for process in [Some(0), None] {
            assert_eq!(Holder::told(1000, process), Holder { user: Client::User(1000), process: None });
            assert_ne!(Holder::told(1000, process), Holder::told(1001, process));
        }
    }

    #[tokio::test]
    async fn a_connection_in_its_place_is_written_to_in_pieces_and_shut_down_as_any_other() {
        let (mut client, server) = UnixStream::pair().unwrap();
        assert!(server.is_write_vectored());
        let mut local = Local::new(server, Places::new(1).take(Holder::told(1, None)).unwrap());
        assert!(local.is_write_vectored());
        assert_eq!(local.write_vectored(&[io::IoSlice::new(b"a"), io::IoSlice::new(b"b")]).await.unwrap(), 2);
        local.shutdown().await.unwrap();
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"ab");
    }

    #[test]
    fn one_client_at_its_bound_ends_its_own_and_nobody_elses() {
        for most in 1..12 {
            let places = Places::new(most);
            let gave_way = |place: &mut Place<u8>| place.gives_way.try_recv().is_ok();
            let mut others: Vec<_> = (0..most / 4).map(|_| places.take_newest(2)).collect();
            let mut own: Vec<_> = (0..most - most / 4).map(|_| places.take_newest(1)).collect();
            let newest = [places.take(1).unwrap(), places.take_newest(1)];
            assert!(!others.iter_mut().any(gave_way), "{most}");
            assert_eq!(own.iter_mut().filter_map(|place| gave_way(place).then_some(())).count(), own.len().min(2), "{most}");
            drop(newest);
        }
    }
}
