//! Services that are started when somebody sends to their name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use bus_core::wire::{Request, Response, SendFlags};
use bus_core::{Destination, NameFlags};
use tempfile::TempDir;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
use tests::process::{Ended, Process};
use tests::programs;
use tests::raw::name;

const NAME: &str = "org.example.Clock";

/// A bus with one service, and a directory for what that writes.
struct Bench {
    directory: TempDir,
    broker: Broker,
}

impl Bench {
    /// A service of this file; DIR in it is the directory.
    fn with(file: &str) -> Self {
        Self::with_path(file, None)
    }

    /// The same, with a program `systemctl` of the test's own.
    fn with_path(file: &str, systemctl: Option<&str>) -> Self {
        Self::with_program(file, "", systemctl.map(|script| ("systemctl", script)))
    }

    /// The same with a program of this name, and this in the configuration.
    fn with_program(file: &str, config: &str, program: Option<(&str, &str)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let services = directory.path().join("services");
        fs::create_dir(&services).unwrap();
        let config = format!("service_directories = [{services:?}]\n{config}");
        let mut path = std::env::var("PATH").unwrap();
        if let Some((name, script)) = program {
            write_script(&directory.path().join("bin").join(name), script);
            path = format!("{}/bin:{path}", directory.path().display());
        }
        let broker = Broker::with_environment(&config, &[("PATH", &path)]);
        let bench = Self { directory, broker };
        bench.write(file);
        bench.broker.unisono("reload").run().with(0);
        bench
    }

    fn write(&self, file: &str) {
        let file = file.replace("DIR", self.directory.path().to_str().unwrap());
        let path = self.directory.path().join(format!("services/{NAME}.toml"));
        fs::write(path, file).unwrap();
    }

    /// A script that says so in the file `starts`, and then does this.
    fn script(&self, text: &str) {
        let unisono = programs::unisono();
        let text = format!("#!/bin/sh\necho started >> DIR/starts\n{text}\n")
            .replace("DIR", self.directory.path().to_str().unwrap())
            .replace("UNISONO ", &format!("{} ", unisono.display()));
        write_script(&self.directory.path().join("service"), &text);
    }

    fn starts(&self) -> usize {
        let starts = fs::read_to_string(self.directory.path().join("starts"));
        starts.unwrap_or_default().lines().count()
    }

    fn call(&self) -> Process {
        self.broker.unisono("call").line(NAME).line("now x").start()
    }

    fn until_not_owned(&self) {
        eventually("not owned", || {
            let names = self.broker.unisono("names").run().with(0).output;
            if names.contains(NAME) { Err(names) } else { Ok(()) }
        });
    }

    fn called(&self) -> Ended {
        self.call().end()
    }
}

fn write_script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A call that finds an owner, waits for its room, and sees it die.
#[test]
fn a_call_whose_owner_dies_before_it_is_delivered_starts_the_service() {
    let bench = Bench::with(COMMAND);
    bench.script("exec UNISONO serve org.example.Clock -- cat");
    let mut owner = bench.broker.raw();
    let own = Request::OwnName { name: name(NAME), flags: NameFlags::empty(), description: None };
    owner.call(own).unwrap();
    let mut caller = bench.broker.raw();
    let found = caller.call(Request::FindName { name: name(NAME) }).unwrap();
    let Response::Name(found) = found else { panic!("{found:?}") };
    for _ in 0..256 {
        caller.send(owner.address(), b"fills its queue").unwrap();
    }
    let call = caller.post_with(Destination::Name(found.name_id), b"x", SendFlags::REQUEST);
    bench.broker.until("the call waits", |stats| stats.waiting_sends == 1);
    drop(owner);
    caller.outcome(call).unwrap();
    assert_eq!(&caller.receive().payload[..], b"x");
    assert_eq!(bench.starts(), 1);
}

/// Whoever asks through an ingress is as good as another client.
#[test]
fn a_request_through_an_ingress_starts_the_service() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("in");
    let config = format!(
        "[[ingress]]\nlisten = \"unix:{}\"\nidentity = \"org.example.Old\"\nname = \"{NAME}\"\n\
         framing = {{ kind = \"length-prefix\", width = 4, bias = 4 }}\n",
        socket.display()
    );
    let bench = Bench::with_program(COMMAND, &config, None);
    bench.script("exec UNISONO serve org.example.Clock -n 1 -- cat");
    for starts in 1..=2 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"\0\0\0\x02ab").unwrap();
        let mut reply = [0; 6];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"\0\0\0\x02ab");
        assert_eq!(bench.starts(), starts);
        bench.until_not_owned();
    }
    // One that cannot be started ends the stream, and no other one.
    bench.write("command = [\"DIR/nothing\"]\n");
    bench.broker.unisono("reload").run().with(0);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"\0\0\0\x02ab").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}

const COMMAND: &str = "command = [\"DIR/service\"]\n";

#[test]
fn many_calls_start_the_service_once_and_all_are_answered() {
    let bench = Bench::with(COMMAND);
    bench.script("exec UNISONO serve org.example.Clock -- cat");
    let calls: Vec<_> = (0..6).map(|_| bench.call()).collect();
    for call in calls {
        assert_eq!(call.end().with(0).output, "x\n");
    }
    assert_eq!(bench.called().with(0).output, "x\n");
    assert_eq!(bench.starts(), 1);
    let names = bench.broker.unisono("names").run().with(0).output;
    assert!(names.contains(NAME), "{names}");
}

#[test]
fn a_service_that_has_ended_is_started_again() {
    let bench = Bench::with(COMMAND);
    bench.script("exec UNISONO serve org.example.Clock -n 1 -- cat");
    for starts in 1..=3 {
        assert_eq!(bench.called().with(0).output, "x\n");
        assert_eq!(bench.starts(), starts);
        eventually("not owned", || {
            let names = bench.broker.unisono("names").run().with(0).output;
            if names.contains(NAME) { Err(names) } else { Ok(()) }
        });
    }
}

/// dbus-broker#209, #314 and #304, systemd#28877: a start that hangs or fails without a word.
#[test]
fn a_service_that_ends_without_its_name_is_an_error_that_says_so() {
    let bench = Bench::with(COMMAND);
    bench.script("exit 7");
    for _ in 0..2 {
        let refused = bench.called().with(1);
        assert!(refused.errors.contains("exit status: 7"), "{}", refused.errors);
        assert!(refused.errors.contains(NAME), "{}", refused.errors);
    }
    assert_eq!(bench.starts(), 2);
    bench.write("command = [\"DIR/no-such-program\"]\n");
    let refused = bench.called().with(1);
    assert!(refused.errors.contains("No such file"), "{}", refused.errors);
}

#[test]
fn g8_a_service_that_fails_again_and_again_is_a_few_lines_that_name_who_asked() {
    let bench = Bench::with_program(
        "command = [\"DIR/no-such-program\"]\n",
        "[log]\nformat = \"json\"\n",
        None,
    );
    let mut caller = bench.broker.raw();
    let found = caller.call(Request::FindName { name: name(NAME) }).unwrap();
    let Response::Name(found) = found else { panic!("{found:?}") };
    for _ in 0..100 {
        let call =
            caller.post_with(Destination::Name(found.name_id), b"SECRET", SendFlags::REQUEST);
        caller.outcome(call).unwrap_err();
    }
    for message in ["starting", "has not started"] {
        let lines = bench.broker.until_counted(message, 100);
        assert!(lines.len() <= 7, "{} lines", lines.len());
        for line in &lines {
            assert_eq!(line["fields"]["service"], NAME, "{line}");
            assert_eq!(line["fields"]["uid"], nix::unistd::getuid().as_raw(), "{line}");
            assert_eq!(line["fields"]["pid"], std::process::id(), "{line}");
            let program = line["fields"]["program"].as_str();
            assert!(program.is_some_and(|name| !name.is_empty()), "{line}");
        }
    }
    assert!(!bench.broker.log().contains("SECRET"), "payloads are never logged");
}

/// dbus-broker#440: without a time-out, descriptors lay in a service's queue until root could not connect.
#[test]
fn a_service_that_takes_too_long_is_ended_and_nothing_of_it_is_left() {
    let bench = Bench::with("command = [\"DIR/service\"]\ntimeout = \"100ms\"\n");
    bench.script("echo $$ > DIR/pid; exec sleep 1000");
    let refused = bench.called().with(1);
    assert!(refused.errors.contains("in time"), "{}", refused.errors);
    let pid = fs::read_to_string(bench.directory.path().join("pid")).unwrap();
    eventually("gone", || match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Err(_) => Ok(()),
        Ok(stat) => Err(stat),
    });
}

#[test]
fn a_call_that_is_given_up_while_the_service_starts_holds_nobody_back() {
    let bench = Bench::with("command = [\"DIR/service\"]\ntimeout = \"60s\"\n");
    bench.script("exec sleep 1000");
    bench.broker.unisono("call -t 200ms").line(NAME).line("now x").run().with(3);
    bench.broker.unisono("call -t 200ms").line(NAME).line("now x").run().with(3);
    assert_eq!(bench.starts(), 1);
    // It comes in its own time, from elsewhere: whoever waits is answered.
    let call = bench.call();
    let serve = bench.broker.unisono("serve").line(NAME).line("-- cat").start();
    assert_eq!(call.end().with(0).output, "x\n");
    drop(serve);
    let pids = fs::read_to_string(format!("/proc/{}/task/{0}/children", bench.broker.pid()));
    let helper = pids.unwrap();
    assert_eq!(helper.split_whitespace().count(), 1, "the broker has no child but its helper");
    let children = format!("/proc/{0}/task/{0}/children", helper.trim());
    for sleeper in fs::read_to_string(children).unwrap().split_whitespace() {
        let pid = nix::unistd::Pid::from_raw(sleeper.parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_service_is_told_its_bus_and_what_its_file_says() {
    let bench = Bench::with("command = [\"DIR/service\"]\nenvironment = { COLOUR = \"red\" }\n");
    bench.script("echo $COLOUR $UNISONO_ADDRESS $NOTIFY_SOCKET > DIR/environment; exit 1");
    let _ = bench.called().with(1);
    let told = fs::read_to_string(bench.directory.path().join("environment")).unwrap();
    assert_eq!(told, format!("red {}\n", bench.broker.socket().display()));
}

#[test]
fn a_unit_is_started_by_the_service_manager() {
    let unisono = programs::unisono();
    let start = format!(
        "#!/bin/sh\necho \"$@\" > $(dirname $0)/asked\n{} serve {NAME} -- cat &\n",
        unisono.display()
    );
    let bench = Bench::with_path("unit = \"clock.service\"\n", Some(&start));
    // The service manager knows the bus; this one is told by its environment.
    let start =
        start.replace("serve", &format!("--address {} serve", bench.broker.socket().display()));
    write_script(&bench.directory.path().join("bin/systemctl"), &start);
    assert_eq!(bench.called().with(0).output, "x\n");
    let asked = fs::read_to_string(bench.directory.path().join("bin/asked")).unwrap();
    assert!(asked.ends_with("start -- clock.service\n"), "{asked}");

    let fails = Bench::with_path("unit = \"clock.service\"\n", Some("#!/bin/sh\nexit 5\n"));
    let refused = fails.called().with(1);
    assert!(refused.errors.contains("exit status: 5"), "{}", refused.errors);
}

#[test]
fn a_command_is_run_by_the_service_manager_if_the_configuration_says_so() {
    let bench = Bench::with_program(
        "command = [\"/no/such/clock\", \"-v\"]\nenvironment = { COLOUR = \"red\" }\n",
        "commands = \"systemd\"\n",
        Some(("systemd-run", "#!/bin/sh\necho \"$@\" > $(dirname $0)/asked\nexit 4\n")),
    );
    let refused = bench.called().with(1);
    assert!(refused.errors.contains("exit status: 4"), "{}", refused.errors);
    let asked = fs::read_to_string(bench.directory.path().join("bin/asked")).unwrap();
    let address = format!("--setenv=UNISONO_ADDRESS={}", bench.broker.socket().display());
    for part in ["--collect --wait", "--setenv=COLOUR=red", &address, "-- /no/such/clock -v"] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
}

#[test]
fn who_may_not_call_starts_nothing() {
    let bench = Bench::with(COMMAND);
    bench.script("exit 1");
    let config = format!(
        "service_directories = [{:?}]\n[[policy]]\ndeny = [\"call\"]\non = [\"org.example.*\"]\n",
        bench.directory.path().join("services")
    );
    let _ = bench.broker.file_with("broker.toml", config);
    bench.broker.unisono("reload").run().with(0);
    assert!(bench.called().with(1).errors.contains("broker.toml:2"));
    assert_eq!(bench.starts(), 0);
}

#[test]
fn when_the_broker_ends_its_helper_does() {
    let mut bench = Bench::with(COMMAND);
    let children = format!("/proc/{0}/task/{0}/children", bench.broker.pid());
    let helper = fs::read_to_string(children).unwrap();
    assert_ne!(helper, "");
    bench.broker.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(bench.broker.ended().success());
    let alive = Path::new("/proc").join(helper.trim());
    eventually(
        "the helper has ended",
        || if alive.exists() { Err(helper.clone()) } else { Ok(()) },
    );
}
