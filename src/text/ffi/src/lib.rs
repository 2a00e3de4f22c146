//! Tokenizers and chat templates behind the C ABI of `quire_text_ffi.h`, which states the rules of every function here.
//! This file is the boundary: pointers become slices, results become codes, panics become errors. No other file is unsafe.

mod around;
mod bounded_filters;
mod charsmap;
mod checked_tree;
mod cuts;
mod decode_table;
mod guard;
mod json_bounds;
mod length_bound;
mod loop_exits;
mod python;
mod reserved;
mod sentencepiece;
mod sentencepiece_bpe;
mod strftime;
mod template;
mod template_source;
mod tokenizer;
mod value_bounds;

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use template::Template;
use tokenizer::{Encode, Tokenizer};

/// What went wrong, with the gRPC code it has on the wire.
#[derive(Debug)]
pub struct Failure {
    pub code: i32,
    pub message: String,
}

pub const INVALID_ARGUMENT: i32 = 3;
pub const RESOURCE_EXHAUSTED: i32 = 8;
pub const OUT_OF_RANGE: i32 = 11;
pub const INTERNAL: i32 = 13;

pub fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: INVALID_ARGUMENT, message: message.into() }
}

pub type Outcome<T> = Result<T, Failure>;

#[repr(C)]
pub struct Text {
    data: *mut u8,
    bytes: usize,
}

#[repr(C)]
pub struct Ids {
    data: *mut i32,
    count: usize,
}

#[repr(C)]
pub struct Token {
    spelling: *const u8,
    spelling_bytes: usize,
    bytes: *const u8,
    num_bytes: usize,
    special: u8,
}

#[repr(C)]
pub struct DecodeRules {
    strip_leading_space: u8,
    replace_each_byte: u8,
}

const ADD_SPECIAL: u32 = 1;
const SPECIAL_AS_TEXT: u32 = 2;
const GUARDED: u32 = 4;

fn give_text(text: String) -> Text {
    let slice = Box::leak(text.into_bytes().into_boxed_slice());
    Text { data: slice.as_mut_ptr(), bytes: slice.len() }
}

/// # Safety
/// `data` points to `bytes` readable bytes, or `bytes` is 0.
unsafe fn take_bytes<'a>(data: *const u8, bytes: usize) -> &'a [u8] {
    if bytes == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, bytes)
    }
}

unsafe fn take_str<'a>(data: *const u8, bytes: usize, what: &str) -> Outcome<&'a str> {
    std::str::from_utf8(take_bytes(data, bytes))
        .map_err(|e| invalid(format!("{what} is not UTF-8: byte {} is wrong", e.valid_up_to())))
}

/// What a panic said, as the caller's failure.
type Fault = fn(&str) -> Failure;

fn internal(said: &str) -> Failure {
    Failure { code: INTERNAL, message: format!("internal fault: {said}") }
}

/// A file is read with no other input: what the library does not expect is in the file.
fn unexpected(said: &str) -> Failure {
    invalid(format!("the library that reads it does not expect what it says: {said}"))
}

fn told(fault: Fault, cause: &(dyn std::any::Any + Send)) -> Failure {
    let said = cause.downcast_ref::<&str>().map(|s| s.to_string()).or_else(|| cause.downcast_ref::<String>().cloned());
    fault(&said.unwrap_or_else(|| "unknown".into()))
}

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Outside,
    Inside,
    Unwinding,
}

thread_local! {
    static CALL: Cell<Call> = const { Cell::new(Call::Outside) };
}

/// `catch_unwind`, and the panic's words go to the caller alone: Rust's own hook would write them to stderr. It still does for what
/// nobody catches, as a second panic while the first unwinds.
fn catch<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match CALL.get() {
            Call::Inside => CALL.set(Call::Unwinding),
            _ => tell(panic),
        }));
    });
    CALL.set(Call::Inside);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CALL.set(Call::Outside);
    outcome
}

/// Runs `work`, hands its value to `keep`, or writes its error.
unsafe fn run<T>(error: *mut Text, work: impl FnOnce() -> Outcome<T>, keep: impl FnOnce(T)) -> i32 {
    run_or(internal, error, work, keep)
}

unsafe fn run_or<T>(fault: Fault, error: *mut Text, work: impl FnOnce() -> Outcome<T>, keep: impl FnOnce(T)) -> i32 {
    let outcome = catch(work).unwrap_or_else(|cause| Err(told(fault, cause.as_ref())));
    match outcome {
        Ok(value) => {
            keep(value);
            0
        }
        Err(failure) => {
            *error = give_text(failure.message);
            failure.code
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn quire_text_free(text: Text) {
    if !text.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(text.data, text.bytes)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn quire_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.count)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_open_json(
    json: *const u8,
    json_bytes: usize,
    config: *const u8,
    config_bytes: usize,
    tokenizer: *mut *mut Tokenizer,
    error: *mut Text,
) -> i32 {
    let json = take_bytes(json, json_bytes);
    let config = take_bytes(config, config_bytes);
    run_or(unexpected, error, || Tokenizer::from_json(json, config), |made| *tokenizer = Box::into_raw(Box::new(made)))
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_open_sentencepiece(
    model: *const u8,
    model_bytes: usize,
    config: *const u8,
    config_bytes: usize,
    tokenizer: *mut *mut Tokenizer,
    error: *mut Text,
) -> i32 {
    let model = take_bytes(model, model_bytes);
    let config = take_bytes(config, config_bytes);
    run_or(unexpected, error, || sentencepiece::open(model, config), |made| *tokenizer = Box::into_raw(Box::new(made)))
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_close(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: *const u8,
    text_bytes: usize,
    flags: u32,
    max_ids: usize,
    part_bytes: usize,
    ids: *mut Ids,
    error: *mut Text,
) -> i32 {
    let how = Encode {
        add_special: flags & ADD_SPECIAL != 0,
        special_as_text: flags & SPECIAL_AS_TEXT != 0,
        guarded: flags & GUARDED != 0,
        max_ids,
        part_bytes,
        starts: true,
    };
    let work = || (*tokenizer).encode(take_str(text, text_bytes, "text")?, how);
    run(error, work, |made| {
        let slice = Box::leak(made.into_boxed_slice());
        *ids = Ids { data: slice.as_mut_ptr(), count: slice.len() };
    })
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_guard(
    tokenizer: *const Tokenizer,
    text: *const u8,
    text_bytes: usize,
    guarded: *mut Text,
    error: *mut Text,
) -> i32 {
    let work = || Ok((*tokenizer).guard(take_str(text, text_bytes, "text")?));
    run(error, work, |made| *guarded = give_text(made))
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_reads_in_parts(tokenizer: *const Tokenizer) -> u8 {
    u8::from((*tokenizer).reads_in_parts())
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_num_ids(tokenizer: *const Tokenizer) -> i32 {
    (*tokenizer).table().len() as i32
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_token_id(tokenizer: *const Tokenizer, token: *const u8, token_bytes: usize) -> i32 {
    let find = || take_str(token, token_bytes, "token").ok().and_then(|token| (*tokenizer).token_id(token));
    catch(find).ok().flatten().map_or(-1, |id| id as i32)
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_token(tokenizer: *const Tokenizer, id: i32) -> Token {
    match usize::try_from(id).ok().and_then(|id| (*tokenizer).table().get(id)) {
        Some(entry) => Token {
            spelling: entry.spelling.as_ptr(),
            spelling_bytes: entry.spelling.len(),
            bytes: entry.bytes.as_ptr(),
            num_bytes: entry.bytes.len(),
            special: entry.special.into(),
        },
        None => Token { spelling: std::ptr::null(), spelling_bytes: 0, bytes: std::ptr::null(), num_bytes: 0, special: 0 },
    }
}

#[no_mangle]
pub unsafe extern "C" fn quire_tokenizer_decode_rules(tokenizer: *const Tokenizer) -> DecodeRules {
    let rules = (*tokenizer).table().rules();
    DecodeRules { strip_leading_space: rules.strip_leading_space.into(), replace_each_byte: rules.byte_fallback.into() }
}

#[no_mangle]
pub unsafe extern "C" fn quire_template_open(
    source: *const u8,
    source_bytes: usize,
    variables: *const u8,
    variables_bytes: usize,
    max_steps: u64,
    max_output_bytes: u64,
    chat_template: *mut *mut Template,
    error: *mut Text,
) -> i32 {
    let work = || {
        let source = take_str(source, source_bytes, "chat template")?;
        Template::new(source, take_bytes(variables, variables_bytes), max_steps, max_output_bytes)
    };
    run(error, work, |made| *chat_template = Box::into_raw(Box::new(made)))
}

#[no_mangle]
pub unsafe extern "C" fn quire_template_close(chat_template: *mut Template) {
    if !chat_template.is_null() {
        drop(Box::from_raw(chat_template));
    }
}

#[no_mangle]
pub unsafe extern "C" fn quire_template_render(
    chat_template: *const Template,
    variables: *const u8,
    variables_bytes: usize,
    now_unix_s: i64,
    rendered: *mut Text,
    error: *mut Text,
) -> i32 {
    let variables = take_bytes(variables, variables_bytes);
    run(error, || (*chat_template).render(variables, now_unix_s), |text| *rendered = give_text(text))
}
