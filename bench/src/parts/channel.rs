//! Files and small requests over a channel, through each manager to each server.

use std::time::{Duration, Instant};

use distant_protocol::Request;

use crate::lab::{Lab, Side};
use crate::process::usage;
use crate::report::{Cell, Goal, Report, Sample};
use crate::wire::{check, Manager};
use crate::{Arguments, Failure};

/// Requests that are under way at the same time, where they need not wait for each other.
const WINDOW: u32 = 64;
/// The longest that one turn of a pair may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest for small requests of one kind in one turn.
const LONG_ENOUGH: Duration = Duration::from_secs(2);
/// How often each pair has its turn, and how often the file is read and written in each.
const ROUNDS: usize = 3;

/// One pair of a manager and a server, and what was measured of it.
struct Pair {
    sides: [Side; 2],
    read: Vec<f64>,
    write: Vec<f64>,
    latency: Vec<f64>,
    rate: Vec<f64>,
    /// Milliseconds of processor time for each MB that is read: in the manager, the server, and here.
    cpu: [Vec<f64>; 3],
}

impl Pair {
    fn name(&self) -> String {
        format!("manager {}, server {}", self.sides[0].name(), self.sides[1].name())
    }
}

/// Measures it.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let mut pairs: Vec<_> = Side::BOTH
        .into_iter()
        .flat_map(|manager| Side::BOTH.map(|server| [manager, server]))
        .map(|sides| Pair {
            sides,
            read: Vec::new(),
            write: Vec::new(),
            latency: Vec::new(),
            rate: Vec::new(),
            cpu: [Vec::new(), Vec::new(), Vec::new()],
        })
        .collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for round in 1..=ROUNDS {
        report.progress(&format!("round {round} of {ROUNDS}"));
        for pair in &mut pairs {
            let name = pair.name();
            report.attempt(&name, run(lab, arguments, pair, &runtime));
        }
    }
    let title = format!(
        "A channel, manager and server combined: a file of {} MiB, small requests one by one and {WINDOW} at a time; \
         the same client for all",
        arguments.megabytes
    );
    let columns = [
        "read MB/s",
        "write MB/s",
        "one small request, ms",
        "small requests/s",
        "manager, CPU ms/MB",
        "server, CPU ms/MB",
        "client, CPU ms/MB",
    ];
    let mut table = report.table("channel", title, &columns);
    let sample = |values: &Vec<f64>| Cell::from(Sample::of(values.clone()));
    for pair in &pairs {
        let values = [
            &pair.read,
            &pair.write,
            &pair.latency,
            &pair.rate,
            &pair.cpu[0],
            &pair.cpu[1],
            &pair.cpu[2],
        ];
        table.add(pair.name(), values.map(sample).to_vec());
    }
    let ratio = |of: fn(&Pair) -> &Vec<f64>| {
        let median = |at: usize| Sample::of(of(&pairs[at]).clone()).map(|it| it.median);
        median(0).zip(median(3)).map(|(ours, theirs)| ours / theirs)
    };
    report.target(
        "reading over a channel, against 0.20.0",
        Goal::AtLeast(2.0),
        ratio(|it| &it.read),
        "×",
    );
    report.target(
        "writing over a channel, against 0.20.0",
        Goal::AtLeast(2.0),
        ratio(|it| &it.write),
        "×",
    );
    report.target(
        "a small request over a channel, against 0.20.0",
        Goal::AtMost(0.5),
        ratio(|it| &it.latency),
        "×",
    );
    Ok(())
}

fn run(
    lab: &Lab,
    arguments: &Arguments,
    pair: &mut Pair,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Failure> {
    let [manager, server] = pair.sides;
    let (serving, destination) = super::idle::server(lab, server)?;
    let managing = lab.manager(manager, None)?;
    let options = if pair.sides == [Side::Ours; 2] { "proof=true" } else { "" };
    let file = lab.path("large");
    // Numbers of all sizes, as a file has them.
    let bytes: Vec<u8> = (0..arguments.megabytes << 20).map(|_| rand::random()).collect();
    std::fs::write(&file, &bytes)?;
    let megabytes = bytes.len() as f64 / 1e6;
    let measure = async {
        let client = Manager::connect(&lab.socket(manager)).await?;
        let id = client.connect_to(&destination, options).await?;
        let mut channel = client.open(id).await?;
        let small = Request::Exists { path: "/".into() };
        let read = Request::FileRead { path: file.clone() };
        let write = Request::FileWrite { path: lab.path("written"), data: bytes };
        channel.ask(&small).await?;
        channel.ask(&read).await?;

        let processes = [managing.pid(), serving.pid(), std::process::id()];
        for _ in 0..ROUNDS {
            let before = processes.map(usage);
            let begun = Instant::now();
            let response = channel.ask(&read).await?;
            pair.read.push(megabytes / begun.elapsed().as_secs_f64());
            if (response.payload.len() as f64) < megabytes * 1e6 {
                return Err("the file came incomplete".into());
            }
            let after = processes.map(usage);
            for at in 0..processes.len() {
                pair.cpu[at].push((after[at].cpu - before[at].cpu) * 1e3 / megabytes);
            }
            let begun = Instant::now();
            channel.ask(&write).await?;
            pair.write.push(megabytes / begun.elapsed().as_secs_f64());
        }

        let mut latencies = Vec::new();
        let end = Instant::now() + LONG_ENOUGH;
        while latencies.len() < arguments.requests && Instant::now() < end {
            let begun = Instant::now();
            channel.ask(&small).await?;
            latencies.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        pair.latency.extend(Sample::of(latencies).map(|it| it.median));

        let begun = Instant::now();
        let (mut sent, mut received) = (0_u32, 0_u32);
        while received < sent || sent == 0 {
            let is_enough = sent as usize >= arguments.requests || begun.elapsed() > LONG_ENOUGH;
            while !is_enough && sent - received < WINDOW {
                channel.send(&small).await?;
                sent += 1;
            }
            check(&channel.next().await?)?;
            received += 1;
        }
        pair.rate.push(f64::from(received) / begun.elapsed().as_secs_f64());
        Ok::<_, Failure>(())
    };
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, measure)
            .await
            .map_err(|_| format!("it was not done within {PATIENCE:?}"))?
    })?;
    if std::fs::read(lab.path("written"))? != std::fs::read(&file)? {
        return Err("the file was not written as it was sent".into());
    }
    Ok(())
}
