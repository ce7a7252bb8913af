//! GET requests over HTTP behind a C interface; the C side is `client/hub/http_api.h`.
//!
//! Functions block, and may be called from any thread. Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`),
//! certificates the system's. No message repeats a URL: its query may be a signature that lets anybody in.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

use crate::network::{provide_tls, runtime, with_causes};
use crate::{buffer, guarded, guarded_or, text, Failure, LuthierBuffer};

/// Of the connection: another try may do better.
const BROKEN: i32 = 2;

/// The hub sends a request on twice at most: a repository that was renamed, then where its files lie.
const MOST_REDIRECTS: usize = 8;

pub struct Http {
    client: Client,
    direct: Client, // past every proxy
}

/// An answer whose body is being read.
pub struct Answer {
    response: Response,
    rest: Bytes, // of what came, not handed out yet
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let code = if error.is_builder() { 1 } else { BROKEN };
        let message = with_causes(&error.without_url());
        Failure { code, message }
    }
}

/// Where the answer sends its reader; none if it does not.
fn redirect_of(response: &Response) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let next = location.and_then(|place| response.url().join(place.to_str().ok()?).ok());
    match next {
        Some(next) => Ok(Some(next)),
        None => Err(String::from("it redirects to no address").into()),
    }
}

impl Http {
    fn new(connect_timeout: Duration, idle_timeout: Duration) -> Result<Http, Failure> {
        provide_tls();
        let builder = || {
            Client::builder()
                .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none()) // see `get`
                .connect_timeout(connect_timeout)
                .read_timeout(idle_timeout)
        };
        Ok(Http {
            client: builder().build()?,
            direct: builder().no_proxy().build()?,
        })
    }

    /// Follows redirects itself, since `token` is for the origin of `url` alone: reqwest 0.13 looks only at the last
    /// hop, and would send it to the second address of another host.
    async fn get(&self, url: &str, token: &str, offset: u64) -> Result<Response, Failure> {
        let home = Url::parse(url).map_err(|e| e.to_string())?;
        let mut url = home.clone();
        for _ in 0..=MOST_REDIRECTS {
            let with_token = !token.is_empty() && url.origin() == home.origin();
            // Without TLS a token is for this machine alone (client/hub/environment.h); a proxy would read it.
            let to_this_machine = with_token && url.scheme() == "http";
            let client = if to_this_machine { &self.direct } else { &self.client };
            let request = client.get(url.clone());
            // Sizes and offsets are those of the file, not of a compressed form of it.
            let mut request = request.header(ACCEPT_ENCODING, "identity");
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if with_token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await?;
            let Some(next) = redirect_of(&response)? else {
                return Ok(response);
            };
            if home.scheme() == "https" && next.scheme() != "https" {
                return Err(
                    String::from("it redirects from https to an address without TLS").into(),
                );
            }
            url = next;
        }
        Err(format!("it redirects more than {MOST_REDIRECTS} times").into())
    }
}

impl Answer {
    /// 0 at the end of the body.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        while self.rest.is_empty() {
            match runtime().block_on(self.response.chunk())? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.rest.len());
        into[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }

    fn header(&self, name: &str) -> Option<String> {
        let value = self.response.headers().get(name)?;
        value.to_str().ok().map(String::from)
    }
}

#[no_mangle]
pub unsafe extern "C" fn luthier_http_new(
    connect_timeout_ms: u64,
    idle_timeout_ms: u64,
    out: *mut *mut Http,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let connect_timeout = Duration::from_millis(connect_timeout_ms);
        let http = Http::new(connect_timeout, Duration::from_millis(idle_timeout_ms))?;
        *out = Box::into_raw(Box::new(http));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_http_free(http: *mut Http) {
    if !http.is_null() {
        drop(Box::from_raw(http));
    }
}

/// Asks for the bytes from `offset` on. Succeeds with whatever answers, of any status.
#[no_mangle]
pub unsafe extern "C" fn luthier_http_get(
    http: *const Http,
    url: *const u8,
    url_len: usize,
    token: *const u8,
    token_len: usize,
    offset: u64,
    out: *mut *mut Answer,
    status: *mut i32,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let asked = (*http).get(text(url, url_len)?, text(token, token_len)?, offset);
        let response = runtime().block_on(asked)?;
        *status = i32::from(response.status().as_u16());
        *out = Box::into_raw(Box::new(Answer {
            response,
            rest: Bytes::new(),
        }));
        Ok(())
    })
}

/// False if there is none such, or it is no text.
#[no_mangle]
pub unsafe extern "C" fn luthier_http_header(
    answer: *const Answer,
    name: *const u8,
    name_len: usize,
    out: *mut LuthierBuffer,
) -> bool {
    guarded_or(false, || {
        let name = text(name, name_len).ok();
        let value = name.and_then(|name| (*answer).header(name));
        value.map(|value| *out = buffer(value)).is_some()
    })
}

/// `count`: 0 at the end of the body.
#[no_mangle]
pub unsafe extern "C" fn luthier_http_read(
    answer: *mut Answer,
    data: *mut u8,
    len: usize,
    count: *mut usize,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        *count = (*answer).read(std::slice::from_raw_parts_mut(data, len))?;
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_http_answer_free(answer: *mut Answer) {
    if !answer.is_null() {
        drop(Box::from_raw(answer));
    }
}
