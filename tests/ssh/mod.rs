//! `distant launch ssh://` against a real sshd, the same on all backends.

mod compatible;
mod configuration;
mod end;
mod host_key;
pub(crate) mod hostile;
mod kerberos;
mod kill;
mod login;
mod matrix;
mod openssh;
mod options;
mod prompts;
pub(crate) mod remote;
mod round_trips;
mod security_key;
mod smart_card;
mod stages;
mod start;
mod swap;
mod tampering;
mod upload;
mod way;

/// Makes one test for each backend of each body.
macro_rules! each_backend {
    ($($(#[$meta:meta])* fn $name:ident($backend:ident: &str) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every body needs something from above")]
            use super::*;

            $(#[$meta])*
            fn body($backend: &str) $body

            #[test]
            fn ssh2() {
                body("ssh2");
            }

            #[test]
            fn libssh() {
                body("libssh");
            }

            #[test]
            fn openssh() {
                body("openssh");
            }
        }
    )*};
}
pub(crate) use each_backend;
