//! The terminal: draws the picture, and does what keys say.
//!
//! The terminal is restored however this ends: by a key, a signal, an error, or a panic.

use std::time::{Duration, Instant};

use bus_client::Bus;
use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};

use super::picture::Picture;
use super::sample::Sample;
use crate::{
    cli::{self, TopSort, TopView},
    exit::{Exit, Failure},
    signals::Notice,
};

/// What is on the screen.
struct Screen {
    view: TopView,
    sort: Option<TopSort>,
    interval: Duration,
    /// The first row that is shown.
    from: usize,
    paused: bool,
    before: Sample,
    picture: Picture,
    taken: Instant,
}

/// What a key has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Draw,
    End,
}

pub(super) fn run(options: &cli::Top, bus: &Bus, notice: &Notice) -> Result<Exit, Failure> {
    // From here on a signal is told, and the terminal is restored before this ends.
    notice.ask();
    let before = Sample::take(bus)?;
    let picture = Picture::new(&before, &before, bus.endpoint_id());
    let mut screen = Screen {
        view: options.view,
        sort: options.sort,
        interval: options.interval.max(LEAST_INTERVAL),
        from: 0,
        paused: false,
        before,
        picture,
        taken: Instant::now(),
    };
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::about("the terminal", error))?;
    let ended = screen.show(bus, notice, &mut terminal);
    ratatui::restore();
    ended.map(|()| Exit::Done)
}

impl Screen {
    fn show(
        &mut self,
        bus: &Bus,
        notice: &Notice,
        terminal: &mut DefaultTerminal,
    ) -> Result<(), Failure> {
        let about = |error| Failure::about("the terminal", error);
        let mut draw = true;
        while !notice.given() {
            if self.taken.elapsed() >= self.interval && !self.paused {
                let after = Sample::take(bus)?;
                self.picture = Picture::new(&self.before, &after, bus.endpoint_id());
                (self.before, self.taken) = (after, Instant::now());
                draw = true;
            }
            if draw {
                terminal.draw(|frame| self.draw(frame)).map_err(about)?;
            }
            let left = self.interval.saturating_sub(self.taken.elapsed());
            let patience = if self.paused { LONGEST_WAIT } else { left.min(LONGEST_WAIT) };
            draw = false;
            if event::poll(patience).map_err(about)? {
                match self.act(&event::read().map_err(about)?) {
                    Asked::End => return Ok(()),
                    asked => draw = asked == Asked::Draw,
                }
            }
        }
        Ok(())
    }

    fn act(&mut self, event: &Event) -> Asked {
        let key = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => key,
            Event::Resize(..) => return Asked::Draw,
            _ => return Asked::Nothing,
        };
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Asked::End;
            }
            KeyCode::Char('q') | KeyCode::Esc => return Asked::End,
            KeyCode::Char('g') => self.look_at(TopView::Groups),
            KeyCode::Char('m') => self.look_at(TopView::Members),
            KeyCode::Char('w') => self.look_at(TopView::Waits),
            KeyCode::Tab => self.look_at(self.view.next()),
            KeyCode::Char('s') => self.sort = TopSort::after(self.sort),
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('+') => self.interval = (self.interval * 2).min(LONGEST_INTERVAL),
            KeyCode::Char('-') => self.interval = (self.interval / 2).max(LEAST_INTERVAL),
            KeyCode::Down => self.from += 1,
            KeyCode::Up => self.from = self.from.saturating_sub(1),
            KeyCode::PageDown => self.from += PAGE,
            KeyCode::PageUp => self.from = self.from.saturating_sub(PAGE),
            KeyCode::Home => self.from = 0,
            _ => return Asked::Nothing,
        }
        Asked::Draw
    }

    fn look_at(&mut self, view: TopView) {
        (self.view, self.from) = (view, 0);
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let areas =
            Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]);
        let [above, middle, below] = areas.areas(frame.area());
        let headline = Paragraph::new(self.picture.headline()).wrap(Wrap { trim: true });
        frame.render_widget(headline, above);
        let table = self.picture.table(self.view, self.sort);
        self.from = self.from.min(table.rows.len().saturating_sub(1));
        let widths: Vec<Constraint> = (0..table.header.len())
            .map(|at| {
                let cells = table.rows.iter().map(|row| row[at].chars().count());
                let widest = cells.chain([table.header[at].len()]).max().unwrap_or(0);
                Constraint::Length(u16::try_from(widest.min(WIDEST)).unwrap_or(u16::MAX))
            })
            .collect();
        let bold = Style::new().add_modifier(Modifier::REVERSED);
        let rows = table.rows.iter().skip(self.from);
        let rows = rows.map(|row| Row::new(row.iter().map(|cell| Cell::new(shown(cell)))));
        let header = Row::new(table.header.iter().copied()).style(bold);
        frame.render_widget(Table::new(rows, widths).header(header), middle);
        let sort = self.sort.map_or("default", TopSort::name);
        let paused = if self.paused { " PAUSED" } else { "" };
        let keys = format!(
            "g groups  m members  w who waits  s sort ({sort})  p pause  +/- {:?}  q quit{paused}",
            self.interval
        );
        frame
            .render_widget(Line::from(keys).style(Style::new().add_modifier(Modifier::DIM)), below);
    }
}

/// What programs call themselves goes to the terminal without anything that would move it.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The shortest interval between two samples: what is asked must not become the load.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// How long a signal may have to wait for the terminal.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// Rows of a page up or down.
const PAGE: usize = 20;
/// The widest column.
const WIDEST: usize = 48;

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;
    use bus_client::EndpointId;

    fn screen() -> Screen {
        let sample = Sample::default();
        let picture = Picture::new(&sample, &sample, EndpointId::from_raw(0));
        Screen {
            view: TopView::Members,
            sort: None,
            interval: Duration::from_secs(1),
            from: 0,
            paused: false,
            before: sample,
            picture,
            taken: Instant::now(),
        }
    }

    fn key(code: KeyCode) -> Event {
        Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn every_view_is_drawn_in_any_size() {
        let mut screen = screen();
        for (width, height) in [(200, 40), (80, 24), (10, 3), (1, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
            for view in ['g', 'm', 'w'] {
                assert_eq!(screen.act(&key(KeyCode::Char(view))), Asked::Draw);
                terminal.draw(|frame| screen.draw(frame)).expect("in memory");
            }
        }
    }

    #[test]
    fn keys_do_what_the_last_line_says() {
        let mut screen = screen();
        for (code, header) in [('g', "GROUP"), ('w', "SENDER"), ('m', "ENDPOINT")] {
            screen.act(&key(KeyCode::Char(code)));
            let mut terminal = Terminal::new(TestBackend::new(100, 10)).expect("in memory");
            terminal.draw(|frame| screen.draw(frame)).expect("in memory");
            let shown = terminal.backend().to_string();
            assert!(shown.contains(header), "{shown}");
        }
        assert_eq!(screen.act(&key(KeyCode::Char('s'))), Asked::Draw);
        assert!(screen.sort.is_some());
        screen.act(&key(KeyCode::Char('+')));
        assert_eq!(screen.interval, Duration::from_secs(2));
        screen.act(&key(KeyCode::Char('p')));
        assert!(screen.paused);
        assert_eq!(screen.act(&key(KeyCode::Char('x'))), Asked::Nothing);
        assert_eq!(screen.act(&key(KeyCode::Char('q'))), Asked::End);
    }
}
