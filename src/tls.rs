//! The one cryptography provider for TLS, to the database and to HTTP servers.

/// Makes ring the process's provider. May be called any number of times.
pub fn install_provider() {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
