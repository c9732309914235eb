//! `slurm://`: a shell script of level a, on a real slurm that has one node. It cleans up by what this
//! machine has, and the report of the tests says by what that was.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Once;

use super::{conforms, example, install, kill_worker, over_there, refused};
use crate::support::{
    eventually, programs, report, Home, Invocation, Look, Manager, Running, Signal, PATIENCE,
};

/// The cluster's network, which nobody else is in.
const ADDRESS: &str = "10.99.0.1";

/// Starts both daemons, says when the one has heard of the other, and ends them when it is told to.
const SCRIPT: &str = r#"
ip link set lo up && ip link add near type veth peer far && ip address add $1/24 dev near &&
    ip link set near up && ip link set far up && hostname $2 && mkfifo "$3" || exit
slurmctld -D 2> "$3" & control=$!
slurmd -D -N $2 & node=$!
trap 'kill $node; wait $node; kill $control; wait $control; exit 0' TERM
exec 3< "$3"
while IFS= read -r line <&3; do
    printf '%s\n' "$line" >&2
    case $line in
        *"registration complete for $2 "*) echo ready; cat <&3 >&2 & wait ;;
    esac
done
"#;

/// How slurm finds the processes of a job: by their cgroup, or by their parents where this machine has
/// cgroups of version 2 alone, or none.
fn tracking() -> (&'static str, &'static str) {
    static SAID: Once = Once::new();
    let (plugin, config) = match Path::new("/sys/fs/cgroup/freezer").is_dir() {
        true => ("proctrack/cgroup", "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"),
        false => ("proctrack/linuxproc", "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/nowhere\n"),
    };
    SAID.call_once(|| report(format!("slurm ends jobs by {plugin}")));
    (plugin, config)
}

/// A cluster of one node with two processors, in a network of its own.
struct Cluster<'a> {
    home: &'a Home,
    daemons: Option<Running>,
    node: String,
}

impl<'a> Cluster<'a> {
    fn start(home: &'a Home) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Its cgroup has that name, and there is one tree of them for all.
        let node = format!("n{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = home.path("slurm").display().to_string();
        fs::create_dir_all(home.path("slurm/state")).unwrap();
        fs::create_dir_all(home.path("slurm/spool")).unwrap();
        let (plugin, cgroups) = tracking();
        let config = format!(
            "ClusterName=test\nSlurmctldHost={node}({ADDRESS})\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/none\nCredType=cred/none\nStateSaveLocation={folder}/state\n\
             SlurmdSpoolDir={folder}/spool\nSlurmctldPidFile={folder}/control.pid\n\
             SlurmdPidFile={folder}/node.pid\nProctrackType={plugin}\nTaskPlugin=task/none\n\
             SlurmctldDebug=debug2\nMpiDefault=none\nReturnToService=2\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_CPU\nSchedulerParameters=sched_min_interval=0\n\
             NodeName={node} NodeHostname={node} NodeAddr={ADDRESS} CPUs=2 State=UNKNOWN\n\
             PartitionName=debug Nodes={node} Default=YES MaxTime=INFINITE State=UP\n"
        );
        home.write("slurm/slurm.conf", config);
        home.write("slurm/cgroup.conf", cgroups);
        let log = format!("{folder}/log");
        let words = ["--net", "--uts", "sh", "-c", SCRIPT, "slurm", ADDRESS, &node, &log];
        let daemons = home.program("unshare", words).env("SLURM_CONF", config_of(home)).start();
        assert_eq!(daemons.line(), "ready", "{}", daemons.told());
        Self { home, daemons: Some(daemons), node }
    }

    /// A program in the cluster's network.
    fn inside<'b>(&self, words: impl IntoIterator<Item = &'b str>) -> Invocation {
        let network = format!("--net=/proc/{}/ns/net", self.daemons.as_ref().unwrap().pid());
        let enter = self.home.program("nsenter", [network]).env("SLURM_CONF", config_of(self.home));
        words.into_iter().fold(enter, |enter, word| enter.arg(word))
    }

    fn manager(&self) -> Manager {
        let distant = programs().distant.to_str().unwrap();
        let listen = self.inside([distant, "manager", "listen", "--user"]);
        Manager::listen(self.home, listen, true)
    }

    /// The jobs that wait or run, with their state.
    fn jobs(&self) -> Vec<String> {
        let queue = self.inside(["squeue", "--noheader", "--format=%T %P %C %j"]).run().success();
        queue.stdout.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn assert_no_jobs_but(&self, others: usize) {
        eventually("the end of the job", || (self.jobs().len() == others).then_some(()));
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let Some(daemons) = self.daemons.take() else { return };
        daemons.signal(Signal::TERM);
        let ended = daemons.ends_within(PATIENCE);
        if std::thread::panicking() {
            // Its steps are no children of its daemons, and have an environment of their own.
            let steps = Look::running().into_iter().filter(|seen| {
                let groups = fs::read_to_string(format!("/proc/{}/cgroup", seen.pid));
                groups.is_ok_and(|it| it.contains(&format!("slurm_{}", self.node)))
            });
            steps.for_each(|seen| seen.kill());
        }
        // An empty cgroup is nobody's any more.
        for place in ["freezer", "cpuset", "memory", "devices", "cpuacct", "cpu", ""] {
            let place = Path::new("/sys/fs/cgroup").join(place);
            let _ = fs::remove_dir(place.join(format!("slurm_{}", self.node)));
        }
        assert!(ended || std::thread::panicking(), "{}", daemons.told());
    }
}

fn config_of(home: &Home) -> std::path::PathBuf {
    home.path("slurm/slurm.conf")
}

fn home() -> Home {
    let home = Home::new();
    install(&home, &example("slurm").join("distant-plugin-slurm"));
    home
}

fn launch(home: &Home, destination: &str) -> Invocation {
    home.ours(["launch", destination, "--distant"]).arg(&programs().distant)
}

#[test]
fn slurm_runs_a_server_in_a_job_that_lasts_as_long_as_the_connection() {
    let home = home();
    let cluster = Cluster::start(&home);
    let manager = cluster.manager();
    let id = launch(&home, "slurm://debug").arg("--options=cpus=2,time=10").run().id().to_string();
    let shown = "echo $SLURM_JOB_PARTITION $SLURM_CPUS_PER_TASK $SLURMD_NODENAME";
    let expected = format!("debug 2 {}\n", cluster.node);
    assert_eq!(over_there(&home, &["sh", "-c", shown]), expected);
    let jobs = cluster.jobs();
    assert!(jobs.len() == 1 && jobs[0].starts_with("RUNNING debug 2 distant-"), "{jobs:?}");
    home.ours(["manager", "kill", &id]).run().success();
    cluster.assert_no_jobs_but(0);
    manager.assert_no_offspring();

    // Whoever is killed, the job goes: nobody could connect to its server any more.
    launch(&home, "slurm://default").run().id();
    assert_eq!(cluster.jobs().len(), 1);
    kill_worker(&manager);
    cluster.assert_no_jobs_but(0);
    launch(&home, "slurm://default").run().id();
    assert_eq!(cluster.jobs().len(), 1);
    manager.kill();
    cluster.assert_no_jobs_but(0);
}

#[test]
fn slurm_says_what_a_job_waits_for_and_takes_it_out_of_the_queue() {
    let home = home();
    let cluster = Cluster::start(&home);
    let manager = cluster.manager();
    let other = cluster.inside(["srun", "--cpus-per-task=2", "sleep", "1000"]).start();
    eventually("the job of somebody else", || {
        cluster.jobs().iter().any(|job| job.starts_with("RUNNING")).then_some(())
    });
    let given_up = launch(&home, "slurm://debug").start();
    eventually("what it waits for", || {
        given_up.told().contains("in its queue (Resources)").then_some(())
    });
    assert_eq!(cluster.jobs().len(), 2);
    given_up.signal(Signal::INT);
    given_up.finish().code(130);
    cluster.assert_no_jobs_but(1);

    let killed = launch(&home, "slurm://debug").start();
    eventually("a job in the queue", || (cluster.jobs().len() == 2).then_some(()));
    kill_worker(&manager);
    killed.finish().code(1);
    cluster.assert_no_jobs_but(1);

    // It comes to its turn.
    let patient = launch(&home, "slurm://debug").start();
    eventually("a job in the queue", || (cluster.jobs().len() == 2).then_some(()));
    other.signal(Signal::TERM);
    other.finish();
    patient.finish().id();
    manager.stop();
    cluster.assert_no_jobs_but(0);
}

#[test]
fn slurm_passes_the_conformance_kit_as_far_as_it_needs_no_cluster() {
    let home = Home::new();
    conforms(&home, &example("slurm").join("distant-plugin-slurm"), &[], 5);
}

#[test]
fn slurm_says_why_there_is_no_job() {
    let home = home();
    let cluster = Cluster::start(&home);
    let manager = cluster.manager();
    let unknown = ["did not run the command", "caused by: srun: error: ", "invalid partition"];
    refused(launch(&home, "slurm://nonesuch"), &unknown);
    let odd = launch(&home, "slurm://debug").arg("--options=account=\"a\\\"b\"");
    refused(odd, &["error: an option with a quote or a backslash is nothing for srun\n"]);
    let missing = home.ours(["launch", "slurm://debug", "--distant=/nowhere/distant"]);
    refused(missing, &["error: there is no `/nowhere/distant` on `debug`\n"]);
    let late = cluster.inside(["srun", "--cpus-per-task=2", "sleep", "1000"]).start();
    eventually("the job of somebody else", || (cluster.jobs().len() == 1).then_some(()));
    let limit = launch(&home, "slurm://debug").arg("--options=wait=1500");
    refused(limit, &["did not run a command within 1500 ms\n", "queued and waiting for resources"]);
    cluster.assert_no_jobs_but(1);
    late.signal(Signal::TERM);
    late.finish();
    manager.assert_no_offspring();
    cluster.assert_no_jobs_but(0);
}
