//! Progress of a long input, for a person at a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::output::Output;

/// Shows nothing until the work has taken a moment, and nothing at all where nobody looks.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: Option<Shown>,
    messages: u64,
}

#[derive(Debug)]
struct Shown {
    since: Instant,
    total_bytes: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `total_bytes` is the length of the input, if it is known.
    pub(crate) fn new(output: &Output, total_bytes: Option<u64>) -> Self {
        Self {
            shown: output.shows_progress().then(|| Shown {
                since: Instant::now(),
                total_bytes,
                bar: None,
            }),
            messages: 0,
        }
    }

    /// Shows that something takes its time, and for how long it has.
    pub(crate) fn waiting(output: &Output, what: &'static str) -> Option<ProgressBar> {
        let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed_precise}");
        let style = style.expect("the template is well-formed");
        output.shows_progress().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(None, target).with_style(style);
            let bar = bar.with_finish(ProgressFinish::AndClear);
            bar.set_message(what);
            bar.enable_steady_tick(TICK);
            bar
        })
    }

    /// One more message was sent; `bytes` of the input have been read.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.messages += 1;
        self.show(bytes, |messages| format!("{messages} messages"));
    }

    /// So much of the input has been read.
    pub(crate) fn read(&mut self, bytes: u64) {
        self.show(bytes, |_| "read".to_owned());
    }

    fn show(&mut self, bytes: u64, what: impl FnOnce(u64) -> String) {
        let Some(shown) = &mut self.shown else { return };
        if shown.bar.is_none() && shown.since.elapsed() < MOMENT {
            return;
        }
        let bar = shown.bar.get_or_insert_with(|| bar(shown.total_bytes));
        bar.set_position(bytes);
        bar.set_message(what(self.messages));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.shown.take().and_then(|shown| shown.bar) {
            bar.finish_and_clear();
        }
    }
}

fn bar(total_bytes: Option<u64>) -> ProgressBar {
    let template = match total_bytes {
        Some(_) => "{bar:30} {bytes}/{total_bytes}, {msg}, {eta} left",
        None => "{spinner} {bytes}, {msg}, {elapsed}",
    };
    let style = ProgressStyle::with_template(template).expect("both templates are well-formed");
    ProgressBar::with_draw_target(total_bytes, ProgressDrawTarget::stderr()).with_style(style)
}

const TICK: Duration = Duration::from_millis(100);
/// What is done sooner needs no progress.
const MOMENT: Duration = Duration::from_millis(500);
