//! Tokenizers, chat templates, object stores, HTTP and Parquet behind a C interface; the C side is `lib/text/rust_api.h`,
//! `lib/artifact/bucket_api.h`, `client/hub/http_api.h` and `lib/dataset/parquet_api.h`.
//!
//! Functions return 0, or a code of `Failure` with a message in `error`; those that look a token up return what they found,
//! or nothing. No panic crosses the border. Texts come in as UTF-8 with a length and go out as buffers that the caller gives
//! back to `luthier_buffer_free`.

mod bucket;
mod classes;
mod columns;
mod http;
mod network;
mod numbers;
mod pages;
mod parquet_rows;
mod python;
mod render;
mod source;
mod text;
mod thrift;
mod values;

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use render::ChatTemplate;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
}

#[repr(C)]
pub struct LuthierBuffer {
    data: *mut u8,
    len: usize,
}

/// `ids` has `len` elements, `offsets` two for each id: first byte and end.
#[repr(C)]
pub struct LuthierEncoding {
    ids: *mut i32,
    offsets: *mut i64,
    len: usize,
}

/// `spans` has two elements for each of the `span_count` generation blocks: first byte and end. `spans_in_place`: whether
/// the text has there what the blocks wrote.
#[repr(C)]
pub struct LuthierRendered {
    text: LuthierBuffer,
    spans: *mut i64,
    span_count: usize,
    spans_in_place: bool,
}

/// Why a function does not return 0.
struct Failure {
    code: i32,
    message: String,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure { code: 1, message }
    }
}

fn leak<T>(values: Vec<T>) -> (*mut T, usize) {
    let mut boxed = values.into_boxed_slice();
    let parts = (boxed.as_mut_ptr(), boxed.len());
    std::mem::forget(boxed);
    parts
}

unsafe fn reclaim<T>(data: *mut T, len: usize) {
    if !data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, len)));
    }
}

fn buffer(text: String) -> LuthierBuffer {
    let (data, len) = leak(text.into_bytes());
    LuthierBuffer { data, len }
}

unsafe fn text<'a>(data: *const u8, len: usize) -> Result<&'a str, String> {
    let bytes = if len == 0 {
        &[][..]
    } else {
        std::slice::from_raw_parts(data, len)
    };
    std::str::from_utf8(bytes).map_err(|e| format!("text is not UTF-8 (byte {})", e.valid_up_to()))
}

/// Runs `body`; its error or panic becomes a message and the return value.
unsafe fn guarded(error: *mut LuthierBuffer, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown");
            Failure::from(format!("internal error in the Rust crate: {what}"))
        }
    };
    *error = buffer(failure.message);
    failure.code
}

/// For what has no message to give: `otherwise` if `body` panicked.
fn guarded_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

thread_local! {
    static PANICS_QUIETLY: Cell<bool> = const { Cell::new(false) };
}

/// None if `body` panicked. It writes nothing to stderr then: whoever sends damaged files would fill the server's log.
fn caught_quietly<T>(body: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !PANICS_QUIETLY.get() {
                usual(panic);
            }
        }));
    });
    PANICS_QUIETLY.set(true);
    let value = catch_unwind(AssertUnwindSafe(body)).ok();
    PANICS_QUIETLY.set(false);
    value
}

#[no_mangle]
pub unsafe extern "C" fn luthier_buffer_free(buffer: LuthierBuffer) {
    reclaim(buffer.data, buffer.len);
}

#[no_mangle]
pub unsafe extern "C" fn luthier_encoding_free(encoding: LuthierEncoding) {
    reclaim(encoding.ids, encoding.len);
    reclaim(encoding.offsets, 2 * encoding.len);
}

#[no_mangle]
pub unsafe extern "C" fn luthier_rendered_free(rendered: LuthierRendered) {
    luthier_buffer_free(rendered.text);
    reclaim(rendered.spans, 2 * rendered.span_count);
}

/// `json`: the contents of a tokenizer.json. `files`: what stands beside it, see `lib/text/tokenizer_files.h`.
#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_new(
    json: *const u8,
    len: usize,
    files: *const u8,
    files_len: usize,
    out: *mut *mut Tokenizer,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let inner = classes::load(text(json, len)?, text(files, files_len)?)?;
        let added = inner.get_added_tokens_decoder().into_iter();
        let special = added
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        *out = Box::into_raw(Box::new(Tokenizer { inner, special }));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_encode(
    tokenizer: *const Tokenizer,
    data: *const u8,
    len: usize,
    with_special_tokens: bool,
    out: *mut LuthierEncoding,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let text = text(data, len)?;
        // In characters, as transformers has them: a post-processor that trims a space off takes one off the offsets.
        // In ASCII these are bytes, without a table of all of them.
        let tokenizer = &(*tokenizer).inner;
        let encoding = if text.is_ascii() {
            tokenizer.encode(text, with_special_tokens)
        } else {
            tokenizer.encode_char_offsets(text, with_special_tokens)
        };
        let encoding = encoding.map_err(|e| e.to_string())?;
        let mut bytes: Vec<i64> = text.char_indices().map(|(at, _)| at as i64).collect();
        bytes.push(text.len() as i64);
        let byte = |character: usize| bytes[character.min(bytes.len() - 1)];
        let (ids, len) = leak(encoding.get_ids().iter().map(|id| *id as i32).collect());
        let offsets = encoding.get_offsets().iter();
        let (offsets, _) = leak(offsets.flat_map(|&(a, b)| [byte(a), byte(b)]).collect());
        *out = LuthierEncoding { ids, offsets, len };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const i32,
    len: usize,
    skip_special_tokens: bool,
    out: *mut LuthierBuffer,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let ids = if len == 0 {
            &[][..]
        } else {
            std::slice::from_raw_parts(ids as *const u32, len)
        };
        let decoded = (*tokenizer).inner.decode(ids, skip_special_tokens);
        *out = buffer(decoded.map_err(|e| e.to_string())?);
        Ok(())
    })
}

/// One more than the highest id, so that it bounds every id.
#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> i64 {
    guarded_or(0, || {
        let highest = (*tokenizer).inner.get_vocab(true).into_values().max();
        highest.map_or(0, |id| id as i64 + 1)
    })
}

/// -1 if there is no such token.
#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_token_to_id(
    tokenizer: *const Tokenizer,
    data: *const u8,
    len: usize,
) -> i64 {
    guarded_or(-1, || {
        let id = text(data, len)
            .ok()
            .and_then(|token| (*tokenizer).inner.token_to_id(token));
        id.map_or(-1, i64::from)
    })
}

/// False if there is no such id.
#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_id_to_token(
    tokenizer: *const Tokenizer,
    id: i32,
    out: *mut LuthierBuffer,
) -> bool {
    guarded_or(false, || {
        let token = u32::try_from(id)
            .ok()
            .and_then(|id| (*tokenizer).inner.id_to_token(id));
        token.map(|token| *out = buffer(token)).is_some()
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_tokenizer_is_special(
    tokenizer: *const Tokenizer,
    id: i32,
) -> bool {
    guarded_or(false, || {
        u32::try_from(id).is_ok_and(|id| (*tokenizer).special.contains(&id))
    })
}

/// The texts of the tokens that have names, such as `eos_token`, as a JSON object. `files`: as for `luthier_tokenizer_new`.
#[no_mangle]
pub unsafe extern "C" fn luthier_named_tokens(
    files: *const u8,
    len: usize,
    out: *mut LuthierBuffer,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        *out = buffer(classes::named_tokens(text(files, len)?)?);
        Ok(())
    })
}

/// `special_tokens`: a JSON object of variables such as `eos_token`.
#[no_mangle]
pub unsafe extern "C" fn luthier_template_new(
    source: *const u8,
    source_len: usize,
    special_tokens: *const u8,
    special_tokens_len: usize,
    out: *mut *mut ChatTemplate,
    has_generation: *mut bool,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let special_tokens = text(special_tokens, special_tokens_len)?;
        let template = ChatTemplate::compile(text(source, source_len)?, special_tokens)?;
        *has_generation = template.has_generation;
        *out = Box::into_raw(Box::new(template));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_template_free(template: *mut ChatTemplate) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

/// `request`: see `RenderRequest` in `lib/text/chat_template.h`.
#[no_mangle]
pub unsafe extern "C" fn luthier_template_render(
    template: *const ChatTemplate,
    request: *const u8,
    len: usize,
    out: *mut LuthierRendered,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let rendered = (*template).render(text(request, len)?)?;
        let blocks = rendered.generation.iter();
        let (spans, _) = leak(
            blocks
                .flat_map(|(start, block)| [*start as i64, (start + block.len()) as i64])
                .collect(),
        );
        *out = LuthierRendered {
            spans,
            span_count: rendered.generation.len(),
            spans_in_place: rendered.in_place(),
            text: buffer(rendered.text),
        };
        Ok(())
    })
}
