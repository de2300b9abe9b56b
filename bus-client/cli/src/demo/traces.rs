//! The files of the demonstration: whole traces, message lines alone, receipts.
//!
//! Invariant: a member's file in the traces folder holds its message lines and nothing else, as
//! the member printed them. Other lines (`joined`, `end`) differ between members by nature and
//! stand in the whole trace, which `verify` reads here.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Read, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::exit::Failure;

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// Only this user may enter; removed with the last clone.
    private: Arc<TempDir>,
    kept: PathBuf,
}

/// What one member received.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) number: u64,
    pub(super) messages: u64,
    /// From its first message to its last.
    pub(super) took: Duration,
    /// Of its message lines, in hex.
    pub(super) sha256: String,
}

impl Folder {
    /// Message lines and receipts go to `kept`, if somebody wants them kept.
    pub(super) fn new(kept: Option<&Path>) -> Result<Self, Failure> {
        let private = tempfile::Builder::new()
            .prefix("unisono-demo-")
            .tempdir()
            .map_err(|error| Failure::about("cannot make a folder", error))?;
        let kept = kept.map_or_else(|| private.path().join("kept"), Path::to_owned);
        fs::create_dir_all(kept.join(SENDS))
            .map_err(|error| Failure::about(kept.display(), error))?;
        // Files of an earlier run with more members would belie `sha256sum *.jsonl`.
        remove_earlier(&kept, "member-")?;
        remove_earlier(&kept.join(SENDS), "sender-")?;
        Ok(Self { private: Arc::new(private), kept })
    }

    /// The text that is sent.
    pub(super) fn input(&self) -> PathBuf {
        self.private.path().join("input.txt")
    }

    /// The receipts of a sender.
    pub(super) fn receipts(&self, number: u64) -> PathBuf {
        self.kept.join(SENDS).join(format!("sender-{number}.jsonl"))
    }

    /// The whole traces of so many members.
    pub(super) fn whole_traces(&self, members: u64) -> Vec<PathBuf> {
        (1..=members).map(|n| self.whole(n)).collect()
    }

    /// Records what a member prints, until its end. Counts its messages in `heard`.
    pub(super) fn record(
        &self,
        number: u64,
        output: impl Read,
        heard: &AtomicU64,
    ) -> Result<Summary, Failure> {
        let kept = self.kept.join(format!("member-{number}.jsonl"));
        let about = |error| Failure::about(format_args!("member {number}"), error);
        let mut whole = BufWriter::new(File::create(self.whole(number)).map_err(about)?);
        let mut messages_only = BufWriter::new(File::create(kept).map_err(about)?);
        let mut output = BufReader::new(output);
        let mut digest = Sha256::new();
        let mut messages = 0;
        let mut span: Option<(Instant, Instant)> = None;
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).map_err(about)? > 0 {
            whole.write_all(&line).map_err(about)?;
            if line.starts_with(MESSAGE) {
                messages_only.write_all(&line).map_err(about)?;
                digest.update(&line);
                messages += 1;
                heard.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                span = Some((span.map_or(now, |(first, _)| first), now));
            }
            line.clear();
        }
        whole.flush().map_err(about)?;
        messages_only.flush().map_err(about)?;
        Ok(Summary {
            number,
            messages,
            took: span.map_or(Duration::ZERO, |(first, last)| last - first),
            sha256: hex(&digest.finalize()),
        })
    }

    fn whole(&self, number: u64) -> PathBuf {
        self.private.path().join(format!("member-{number}.jsonl"))
    }
}

fn remove_earlier(dir: &Path, prefix: &str) -> Result<(), Failure> {
    let about = |error| Failure::about(dir.display(), error);
    for entry in fs::read_dir(dir).map_err(about)? {
        let entry = entry.map_err(about)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| {
            name.strip_prefix(prefix)?.strip_suffix(".jsonl")?.parse::<u64>().ok()
        });
        if number.is_some() {
            fs::remove_file(entry.path()).map_err(about)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of the receipts: not beside the members' files, so that `*.jsonl` is those alone.
pub(super) const SENDS: &str = "sends";

/// How a message line of `listen --json` begins.
const MESSAGE: &[u8] = br#"{"type":"message","#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{MessageLine, TraceLine};

    #[test]
    fn only_message_lines_are_digested_and_kept() {
        let message =
            serde_json::to_string(&TraceLine::Message(MessageLine::default())).expect("json");
        let printed =
            format!("{{\"type\":\"joined\"}}\n{message}\n{message}\n{{\"type\":\"end\"}}\n");
        let kept = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(Some(kept.path())).expect("made");
        let heard = AtomicU64::new(0);
        let summary = folder.record(1, printed.as_bytes(), &heard).expect("recorded");
        assert_eq!((summary.messages, heard.into_inner()), (2, 2));
        let lines = format!("{message}\n{message}\n");
        assert_eq!(summary.sha256, hex(&Sha256::digest(&lines)));
        let read = |path: &Path| fs::read_to_string(path).expect("read");
        assert_eq!(read(&kept.path().join("member-1.jsonl")), lines);
        assert_eq!(read(&folder.whole_traces(1)[0]), printed);
    }

    #[test]
    fn an_earlier_runs_files_go_and_others_stay() {
        let kept = tempfile::tempdir().expect("a folder");
        for name in ["member-9.jsonl", "member-x.jsonl", "notes.txt"] {
            fs::write(kept.path().join(name), "").expect("written");
        }
        Folder::new(Some(kept.path())).expect("made");
        let left = |name: &str| kept.path().join(name).exists();
        assert_eq!(
            [left("member-9.jsonl"), left("member-x.jsonl"), left("notes.txt")],
            [false, true, true]
        );
    }
}
