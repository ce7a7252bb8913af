//! Objects of a bucket (S3, Azure, Google Cloud Storage) behind a C interface; the C side is `lib/artifact/bucket_api.h`.
//!
//! Functions block, and may be called from any thread. What is asynchronous runs on the runtime of `network` and does not
//! cross the border. Keys are names beneath the bucket's prefix, with `/` between.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig, WriteMultipart,
};

use crate::network::{provide_tls, runtime, with_causes};
use crate::{buffer, guarded, text, Failure, LuthierBuffer};

const NOT_FOUND: i32 = 2;
const EXISTS: i32 = 3;
const DENIED: i32 = 4;

/// The words of Azure, and of the others, for parts that they no longer have, since an upload was completed meanwhile: an
/// earlier try of this one whose answer was lost, or (Azure) another one of the same object.
const PARTS_FORGOTTEN: [&str; 2] = ["InvalidBlockList", "NoSuchUpload"];

/// Parts of one upload that are on their way: memory is this many and the one that is being filled.
const PARTS_UNDER_WAY: usize = 2;

/// What a cloud's client can do here.
trait Cloud: ObjectStore + Signer {}
impl<T: ObjectStore + Signer> Cloud for T {}

pub struct Bucket {
    store: Arc<dyn Cloud>,
    prefix: Path,
}

#[repr(C)]
pub struct LuthierBucketOptions {
    max_retries: u32,
    retry_timeout_ms: u64,
    request_timeout_ms: u64,
}

/// An object being written. It appears with `luthier_upload_complete`, whole, or never.
pub struct Upload {
    store: Arc<dyn Cloud>,
    key: Path,
    part_bytes: usize,
    first_part: Vec<u8>,
    parts: Option<WriteMultipart>, // once there is more than one
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::NotFound { .. } => NOT_FOUND,
            Error::AlreadyExists { .. } => EXISTS,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => DENIED,
            _ => 1,
        };
        Failure {
            code,
            message: with_causes(&error),
        }
    }
}

impl LuthierBucketOptions {
    fn retry(&self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(10),
                base: 2.0,
            },
            max_retries: self.max_retries as usize,
            retry_timeout: Duration::from_millis(self.retry_timeout_ms),
        }
    }

    fn timeout(&self) -> String {
        format!("{}ms", self.request_timeout_ms)
    }
}

/// Without TLS only where the endpoint says so.
fn is_plain(endpoint: Option<String>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

fn open_s3(bucket: &str, options: &LuthierBucketOptions) -> Result<Arc<dyn Cloud>, Error> {
    let builder = AmazonS3Builder::from_env();
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    let timeout = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
    let store = builder
        .with_bucket_name(bucket)
        .with_allow_http(is_plain(endpoint))
        .with_config(timeout, options.timeout())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true) // one request an object, which every server of the protocol knows
        .with_retry(options.retry())
        .build()?;
    Ok(Arc::new(store))
}

fn open_azure(container: &str, options: &LuthierBucketOptions) -> Result<Arc<dyn Cloud>, Error> {
    let builder = MicrosoftAzureBuilder::from_env();
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    let timeout = AzureConfigKey::Client(ClientConfigKey::Timeout);
    let store = builder
        .with_container_name(container)
        .with_allow_http(is_plain(endpoint))
        .with_config(timeout, options.timeout())
        .with_retry(options.retry())
        .build()?;
    Ok(Arc::new(store))
}

fn open_gcs(bucket: &str, options: &LuthierBucketOptions) -> Result<Arc<dyn Cloud>, Failure> {
    let builder = GoogleCloudStorageBuilder::from_env();
    let key = builder.get_config_value(&GoogleConfigKey::ServiceAccountKey);
    if key.is_some_and(|key| !key.trim_start().starts_with('{')) {
        // The parser's message would repeat it where it stands in quotes.
        let reason = "GOOGLE_SERVICE_ACCOUNT_KEY is not the content of a key file";
        return Err(reason.to_string().into());
    }
    // This builder, unlike the others, allows plain HTTP unless it is told not to.
    let plain = is_plain(builder.get_config_value(&GoogleConfigKey::BaseUrl));
    let allow_http = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
    let timeout = GoogleConfigKey::Client(ClientConfigKey::Timeout);
    let store = builder
        .with_bucket_name(bucket)
        .with_config(allow_http, plain.to_string())
        .with_config(timeout, options.timeout())
        .with_retry(options.retry())
        .build()?;
    Ok(Arc::new(store))
}

/// Credentials, region and endpoint come from the environment, or from the machine's role, and from nowhere else.
fn open(
    scheme: &str,
    name: &str,
    prefix: &str,
    options: &LuthierBucketOptions,
) -> Result<Bucket, Failure> {
    provide_tls();
    let store = match scheme {
        "s3" => open_s3(name, options)?,
        "az" => open_azure(name, options)?,
        "gs" => open_gcs(name, options)?,
        _ => return Err(format!("there is no client for {scheme}://").into()),
    };
    Ok(Bucket {
        store,
        prefix: Path::parse(prefix).map_err(|e| e.to_string())?,
    })
}

impl Bucket {
    unsafe fn path(&self, key: *const u8, len: usize) -> Result<Path, Failure> {
        let key = text(key, len)?;
        let parts = self.prefix.parts().map(|part| part.as_ref().to_string());
        Ok(parts.chain(key.split('/').map(String::from)).collect())
    }
}

impl Upload {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(parts) = &mut self.parts {
            parts.wait_for_capacity(PARTS_UNDER_WAY).await?;
            parts.write(bytes);
            return Ok(());
        }
        self.first_part.extend_from_slice(bytes);
        if self.first_part.len() > self.part_bytes {
            let upload = self.store.put_multipart(&self.key).await?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, self.part_bytes);
            parts.write(&std::mem::take(&mut self.first_part));
            self.parts = Some(parts);
        }
        Ok(())
    }

    /// Parts that cannot all be stored are removed again.
    async fn complete(&mut self) -> Result<(), Failure> {
        let Some(parts) = self.parts.take() else {
            let whole = std::mem::take(&mut self.first_part);
            self.store.put(&self.key, whole.into()).await?;
            return Ok(());
        };
        let Err(error) = parts.finish().await else {
            return Ok(());
        };
        let failure = Failure::from(error);
        let forgotten = PARTS_FORGOTTEN
            .iter()
            .any(|word| failure.message.contains(word));
        Err(Failure {
            code: if forgotten { EXISTS } else { failure.code },
            ..failure
        })
    }
}

#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_open(
    scheme: *const u8,
    scheme_len: usize,
    name: *const u8,
    name_len: usize,
    prefix: *const u8,
    prefix_len: usize,
    options: *const LuthierBucketOptions,
    out: *mut *mut Bucket,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let bucket = open(
            text(scheme, scheme_len)?,
            text(name, name_len)?,
            text(prefix, prefix_len)?,
            &*options,
        )?;
        *out = Box::into_raw(Box::new(bucket));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_free(bucket: *mut Bucket) {
    if !bucket.is_null() {
        drop(Box::from_raw(bucket));
    }
}

/// Stores a small object under a key that has none (`If-None-Match: *`; Google: `x-goog-if-generation-match: 0`).
#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_put_new(
    bucket: *const Bucket,
    key: *const u8,
    key_len: usize,
    data: *const u8,
    len: usize,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let path = (*bucket).path(key, key_len)?;
        let payload = PutPayload::from(text(data, len)?.to_string());
        let put = (*bucket)
            .store
            .put_opts(&path, payload, PutMode::Create.into());
        runtime().block_on(put)?;
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_stat(
    bucket: *const Bucket,
    key: *const u8,
    key_len: usize,
    size: *mut i64,
    modified: *mut i64,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let path = (*bucket).path(key, key_len)?;
        let meta = runtime().block_on((*bucket).store.head(&path))?;
        *size = meta.size as i64;
        *modified = meta.last_modified.timestamp();
        Ok(())
    })
}

/// Reads exactly `len` bytes from `offset` on.
#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_read(
    bucket: *const Bucket,
    key: *const u8,
    key_len: usize,
    offset: u64,
    data: *mut u8,
    len: usize,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let path = (*bucket).path(key, key_len)?;
        let range = offset..offset + len as u64;
        let bytes = runtime().block_on((*bucket).store.get_range(&path, range))?;
        if bytes.len() != len {
            return Err(format!("{} of {len} bytes came", bytes.len()).into());
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, len);
        Ok(())
    })
}

/// Calls `each` with every object whose key begins with the folder `folder`.
#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_list(
    bucket: *const Bucket,
    folder: *const u8,
    folder_len: usize,
    each: extern "C" fn(*mut c_void, *const u8, usize, i64, i64),
    context: *mut c_void,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let folder = (*bucket).path(folder, folder_len)?;
        let prefix = (*bucket).prefix.as_ref();
        runtime().block_on(async {
            let mut objects = (*bucket).store.list(Some(&folder));
            while let Some(object) = objects.try_next().await? {
                let path = object.location.as_ref();
                let key = path.strip_prefix(prefix).unwrap_or(path);
                let key = key.strip_prefix('/').unwrap_or(key);
                let modified = object.last_modified.timestamp();
                each(
                    context,
                    key.as_ptr(),
                    key.len(),
                    object.size as i64,
                    modified,
                );
            }
            Ok::<(), Error>(())
        })?;
        Ok(())
    })
}

/// Succeeds if there is none.
#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_delete(
    bucket: *const Bucket,
    key: *const u8,
    key_len: usize,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let path = (*bucket).path(key, key_len)?;
        match runtime().block_on((*bucket).store.delete(&path)) {
            Err(Error::NotFound { .. }) => Ok(()),
            deleted => Ok(deleted?),
        }
    })
}

/// Makes a URL with which anybody may get the object for a while. Whether there is one is not looked at.
#[no_mangle]
pub unsafe extern "C" fn luthier_bucket_sign(
    bucket: *const Bucket,
    key: *const u8,
    key_len: usize,
    lifetime_ms: u64,
    out: *mut LuthierBuffer,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        let path = (*bucket).path(key, key_len)?;
        let lifetime = Duration::from_millis(lifetime_ms);
        let signed = (*bucket).store.signed_url(Method::GET, &path, lifetime);
        *out = buffer(runtime().block_on(signed)?.into());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_upload_new(
    bucket: *const Bucket,
    key: *const u8,
    key_len: usize,
    part_bytes: usize,
    out: *mut *mut Upload,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        *out = Box::into_raw(Box::new(Upload {
            store: (*bucket).store.clone(),
            key: (*bucket).path(key, key_len)?,
            part_bytes,
            first_part: Vec::new(),
            parts: None,
        }));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_upload_write(
    upload: *mut Upload,
    data: *const u8,
    len: usize,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        if len > 0 {
            runtime().block_on((*upload).write(std::slice::from_raw_parts(data, len)))?;
        }
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn luthier_upload_complete(
    upload: *mut Upload,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || runtime().block_on((*upload).complete()))
}

/// Frees it; if it was not completed, what was sent of it is removed (S3, Google: AbortMultipartUpload), or will be
/// (Azure, after a week).
#[no_mangle]
pub unsafe extern "C" fn luthier_upload_free(
    upload: *mut Upload,
    error: *mut LuthierBuffer,
) -> i32 {
    guarded(error, || {
        if !upload.is_null() {
            if let Some(parts) = Box::from_raw(upload).parts.take() {
                runtime().block_on(parts.abort())?;
            }
        }
        Ok(())
    })
}
