//! What everything that talks over the network shares.

use std::sync::OnceLock;

use tokio::runtime::Runtime;

/// One small runtime, on which what is asynchronous runs while its caller blocks.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("luthier-network")
            .enable_all()
            .build()
            .expect("the system gives no more threads")
    })
}

/// Before the first client is made: rustls has no cryptography of its own.
pub fn provide_tls() {
    // An error says that one is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What is behind an error says why it came: a certificate that nobody vouches for, a name that is not known.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = inner.source();
    }
    message
}
