//! A plugin for `docker://`: `distant launch docker://box` starts a server in the container `box`.
//!
//! It only says how a command is run in a container, where a server there is reached, and how a
//! connection gets in where nothing is; [`bootstrap::launch`] does the rest. What it knows of docker
//! it knows from its command line, so it works with podman too.

mod container;

use distant_plugin_api::bootstrap::{self, Tunnel};
use distant_plugin_api::message::{BindServer, Stage};
use distant_plugin_api::options::{OptionSchema, OptionType, Schema};
use distant_plugin_api::{export_plugin, Caller, LaunchError, LaunchRequest, Manifest, Plugin};

use container::Container;

/// The plugin.
pub struct Docker;

impl Plugin for Docker {
    fn manifest(&self) -> Manifest {
        let text = |name: &str, help: &str| OptionSchema::new(name, OptionType::String, help);
        let ways = ["auto", "never", "always"].map(str::to_owned).to_vec();
        let mut manifest = Manifest::new("docker", ["docker"]);
        manifest.version = env!("CARGO_PKG_VERSION").to_owned();
        manifest.description = "starts a server in a container that runs".to_owned();
        manifest.options = Schema(vec![
            text("container", "the container, where its name is none for a host, such as `my_box`"),
            text("user", "whom to be in there, as `--user` of docker exec"),
            text("context", "the docker context"),
            text("host", "the docker daemon, such as ssh://me@far"),
            text("program", "the command line: docker, or podman").or("docker"),
            OptionSchema::new("tunnel", OptionType::Enum(ways), "go through docker exec")
                .or("auto"),
        ]);
        manifest
    }

    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        caller.stage(Stage::Connect)?;
        let container = Container::find(request)?;
        let mut request = request.clone();
        if request.server.bind == BindServer::Ssh {
            request.server.bind = match container.shares_network {
                // Nobody has to reach it from another machine.
                true => BindServer::Host("127.0.0.1".to_owned()),
                false => BindServer::Any,
            };
        }
        bootstrap::launch(&container, &request, Tunnel::of(&request), caller)
    }
}

export_plugin!(Docker);

#[cfg(test)]
mod tests;
