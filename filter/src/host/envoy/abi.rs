//! The Proxy-Wasm ABI 0.2.1, as much of it as the filter uses: Envoy's functions behind safe ones, and the memory that
//! Envoy asks for.
//!
//! The SDK, `proxy-wasm`, is not used: it wants to be told of every context that begins, copies every header twice, and
//! panics on a status that it does not know. The list of imports is short for it, too (`docs/decisions/0015`).
//! Statuses are numbers here, since an enum with a value that it does not have is undefined behaviour.
#![allow(unsafe_code, reason = "an ABI is pointers and lengths; nothing else in the filter is unsafe")]

use std::alloc::Layout;
use std::ptr::null_mut;

/// What a callback about a request returns: nothing of the request goes on. There is no other one, for the filter is
/// terminal.
pub(super) const PAUSE: u32 = 1;

/// Levels of [`log`].
pub(super) const INFO: u32 = 2;
pub(super) const WARN: u32 = 3;
pub(super) const ERROR: u32 = 4;

/// Kinds of [`buffer`].
pub(super) const REQUEST_BODY: u32 = 0;
pub(super) const GRPC_MESSAGE: u32 = 5;
pub(super) const PLUGIN_CONFIGURATION: u32 = 7;

/// Kinds of [`define_metric`].
pub(super) const COUNTER: u32 = 0;
pub(super) const HISTOGRAM: u32 = 2;

const OK: u32 = 0;
const REQUEST_HEADERS: u32 = 0;
const NO_GRPC_STATUS: i32 = -1;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, text: *const u8, size: usize) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(kind: u32, start: usize, most: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_header_map_pairs(kind: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize) -> u32;
    fn proxy_get_shared_data(key: *const u8, key_size: usize, data: *mut *mut u8, size: *mut usize, cas: *mut u32) -> u32;
    fn proxy_set_shared_data(key: *const u8, key_size: usize, value: *const u8, value_size: usize, cas: u32) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_grpc_stream(
        upstream: *const u8,
        upstream_size: usize,
        service: *const u8,
        service_size: usize,
        method: *const u8,
        method_size: usize,
        metadata: *const u8,
        metadata_size: usize,
        stream: *mut u32,
    ) -> u32;
    fn proxy_grpc_send(stream: u32, message: *const u8, size: usize, end: u32) -> u32;
    fn proxy_grpc_cancel(stream: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, size: usize, metric: *mut u32) -> u32;
    fn proxy_record_metric(metric: u32, value: u64) -> u32;
    fn proxy_increment_metric(metric: u32, change: i64) -> u32;
}

/// The version of the ABI, by which Envoy knows how to call.
#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Envoy puts into this memory what its functions return; [`returned`] takes it over.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    match Layout::array::<u8>(size) {
        // SAFETY: the layout is not empty.
        Ok(layout) if size > 0 => unsafe { std::alloc::alloc(layout) },
        _ => null_mut(),
    }
}

/// What a function of Envoy's returned; nothing where it failed, or returned no bytes.
fn returned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut data, mut size) = (null_mut(), 0);
    if call(&raw mut data, &raw mut size) != OK || data.is_null() {
        return None;
    }
    // SAFETY: `malloc` made it with this size as its whole capacity, Envoy filled it, and nobody else knows of it.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

pub(super) fn log(level: u32, text: &str) {
    // SAFETY: Envoy reads the text before it returns. So it is with every pointer that is passed below.
    unsafe { proxy_log(level, text.as_ptr(), text.len()) };
}

/// Nanoseconds since 1970.
pub(super) fn now() -> Option<u64> {
    let mut time = 0;
    // SAFETY: Envoy writes the time.
    (unsafe { proxy_get_current_time_nanoseconds(&raw mut time) } == OK).then_some(time)
}

pub(super) fn tick_every(milliseconds: u32) {
    // SAFETY: only numbers are passed.
    unsafe { proxy_set_tick_period_milliseconds(milliseconds) };
}

pub(super) fn buffer(kind: u32, size: usize) -> Option<Vec<u8>> {
    // SAFETY: see `returned`.
    returned(|data, length| unsafe { proxy_get_buffer_bytes(kind, 0, size, data, length) })
}

/// All headers of the request, in the form that [`super::super::Headers`] reads.
pub(super) fn headers() -> Option<Vec<u8>> {
    // SAFETY: see `returned`.
    returned(|data, size| unsafe { proxy_get_header_map_pairs(REQUEST_HEADERS, data, size) })
}

/// A property by its path, the parts of which are divided by NUL.
pub(super) fn property(path: &str) -> Option<Vec<u8>> {
    // SAFETY: see `returned`.
    returned(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

pub(super) fn set_property(name: &str, value: &[u8]) {
    // SAFETY: see `log`.
    unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) };
}

/// A shared value, and the number of its last change.
pub(super) fn shared_data(key: &str) -> (Option<Vec<u8>>, u32) {
    let mut cas = 0;
    // SAFETY: see `returned`.
    let value = returned(|data, size| unsafe { proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas) });
    (value, cas)
}

/// Sets a shared value; false where it was changed meanwhile.
pub(super) fn set_shared_data(key: &str, value: &[u8], cas: u32) -> bool {
    // SAFETY: see `log`.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas) == OK }
}

/// Answers the request of the effective context with these headers, which are in the form that [`super::super::Headers`]
/// reads.
pub(super) fn respond(status: u16, headers: &[u8], body: &[u8]) -> bool {
    // SAFETY: see `log`.
    unsafe {
        proxy_send_local_response(status.into(), "".as_ptr(), 0, body.as_ptr(), body.len(), headers.as_ptr(), headers.len(), NO_GRPC_STATUS)
            == OK
    }
}

/// Lets another context act; false where it has gone.
pub(super) fn act_as(context: u32) -> bool {
    // SAFETY: only numbers are passed.
    unsafe { proxy_set_effective_context(context) == OK }
}

pub(super) fn open_stream(upstream: &[u8], service: &str, method: &str) -> Option<u32> {
    // A map without pairs.
    const METADATA: [u8; 4] = [0; 4];
    let mut stream = 0;
    // SAFETY: see `log`; Envoy writes the number of the stream.
    let status = unsafe {
        proxy_grpc_stream(
            upstream.as_ptr(),
            upstream.len(),
            service.as_ptr(),
            service.len(),
            method.as_ptr(),
            method.len(),
            METADATA.as_ptr(),
            METADATA.len(),
            &raw mut stream,
        )
    };
    (status == OK).then_some(stream)
}

pub(super) fn send(stream: u32, message: &[u8]) -> bool {
    // SAFETY: see `log`.
    unsafe { proxy_grpc_send(stream, message.as_ptr(), message.len(), 0) == OK }
}

pub(super) fn cancel(stream: u32) {
    // SAFETY: only numbers are passed.
    unsafe { proxy_grpc_cancel(stream) };
}

pub(super) fn define_metric(kind: u32, name: &str) -> Option<u32> {
    let mut metric = 0;
    // SAFETY: see `log`; Envoy writes the number of the metric.
    (unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &raw mut metric) } == OK).then_some(metric)
}

pub(super) fn record(metric: u32, value: u64) {
    // SAFETY: only numbers are passed.
    unsafe { proxy_record_metric(metric, value) };
}

pub(super) fn add(metric: u32, change: i64) {
    // SAFETY: only numbers are passed.
    unsafe { proxy_increment_metric(metric, change) };
}
