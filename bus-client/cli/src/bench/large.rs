//! What `large` measures beside rates: what further receivers cost, and what the flag costs where it
//! does not pay.
//!
//! Invariant: what is compared here was measured in the same turns as everything else, so that the
//! ratios hold on a machine that has other work.

use serde::Serialize;

use super::{
    plan::{Plan, Reading},
    report::{Figures, median},
    stage::Outcome,
    system::System,
};

/// Plans that stand behind those that were asked for.
#[derive(Debug)]
pub(crate) struct Beside {
    /// How many were asked for.
    asked: usize,
    calibration: bus_client::Calibration,
    /// The payload with which the flag is measured.
    below: usize,
}

/// What came of them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BesideFigures {
    crossover_bytes: usize,
    crossover_reason: String,
    /// Of ours, and of memory that all have mapped, for each way of reading: with one receiver and with
    /// as many as were asked for.
    #[serde(skip)]
    growth: Vec<(System, Reading, Growth)>,
    flag_cost_bytes: usize,
    /// Flagged over unflagged.
    flag_cpu_ratio: Option<f64>,
    flag_rate_ratio: Option<f64>,
}

/// CPU time for each MiB that is sent, the receivers' own reading apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Growth {
    #[serde(skip)]
    receivers: usize,
    cpu_us_per_sent_mib_one_receiver: Option<f64>,
    #[serde(skip)]
    cpu_us_per_sent_mib: Option<f64>,
    cpu_growth: Option<f64>,
}

impl Beside {
    /// Adds its plans: one with one receiver for each whose growth is told and each way of reading, and two
    /// of payloads that are too short to be lent, with the flag and without.
    pub(crate) fn new(plans: &mut Vec<Plan>) -> Self {
        let asked = plans.len();
        let calibration = bus_client::Calibration::measure();
        let below = calibration.crossover_bytes / 2;
        let ours = plans[0].system;
        let grows = |plan: &&Plan| plan.system == ours || plan.system.is_memory();
        for plan in &mut *plans {
            let lent = plan.flagged && plan.size >= calibration.crossover_bytes;
            plan.apart = lent || plan.system.is_memory();
        }
        let mut one: Vec<Plan> = plans.iter().filter(grows).cloned().collect();
        one.iter_mut().for_each(|plan| plan.receivers = 1);
        let short = |flagged| Plan {
            size: below,
            flagged,
            apart: false,
            reading: None,
            ..plans[0].clone()
        };
        let short = [short(true), short(false)];
        plans.extend(one);
        plans.extend(short);
        Self { asked, calibration, below }
    }

    /// Takes what came of its plans out.
    pub(crate) fn figures(
        &self,
        plans: &mut Vec<Plan>,
        outcomes: &mut Vec<Vec<Outcome>>,
    ) -> BesideFigures {
        let own_plans = plans.split_off(self.asked);
        let own_outcomes = outcomes.split_off(self.asked);
        let one = own_plans.iter().zip(&own_outcomes).filter_map(|(plan, of_one)| {
            let reading = plan.reading?;
            let mut asked = plans.iter().zip(&*outcomes);
            let (all, of_all) =
                asked.find(|(p, _)| p.system == plan.system && p.reading == plan.reading)?;
            let (one, many) = (cpu_per_mib(plan, of_one), cpu_per_mib(all, of_all));
            let growth = one.zip(many).map(|(one, many)| many / one);
            Some((
                plan.system,
                reading,
                Growth {
                    receivers: all.receivers,
                    cpu_us_per_sent_mib_one_receiver: one,
                    cpu_us_per_sent_mib: many,
                    cpu_growth: growth,
                },
            ))
        });
        let growth = one.collect();
        let [.., flagged, unflagged] = &own_outcomes[..] else {
            unreachable!("both plans stand at the end");
        };
        let over = |figure: fn(&Outcome) -> f64| {
            let of = |outcomes: &[Outcome]| median(outcomes.iter().map(figure).collect());
            Some(of(flagged)? / of(unflagged)?)
        };
        BesideFigures {
            crossover_bytes: self.calibration.crossover_bytes,
            crossover_reason: self.calibration.reason(),
            growth,
            flag_cost_bytes: self.below,
            flag_cpu_ratio: over(|o| o.cpu.as_secs_f64() / o.deliveries.max(1) as f64),
            flag_rate_ratio: over(|o| o.deliveries as f64 / o.elapsed.as_secs_f64()),
        }
    }
}

impl BesideFigures {
    /// What belongs to a system and one way of reading.
    fn growth(&self, system: &str, reading: &str) -> Option<Growth> {
        let is_it = |(of, how, _): &&(System, Reading, Growth)| {
            of.name() == system && how.name() == reading
        };
        self.growth.iter().find(is_it).map(|(.., growth)| *growth)
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        let micros = |value: Option<f64>| value.map_or("?".to_owned(), |us| format!("{us:.0} µs"));
        let percent = |ratio: Option<f64>| match ratio {
            Some(ratio) => format!("{:+.0} %", (ratio - 1.0) * 100.0),
            None => "?".to_owned(),
        };
        let mut lines = Vec::new();
        for (system, reading, growth) in &self.growth {
            lines.push(format!(
                "CPU for each MiB sent, the receivers' own reading apart, {}, {}: 1 receiver {}, {} \
                 receivers {} ({})",
                system.name(),
                reading.name(),
                micros(growth.cpu_us_per_sent_mib_one_receiver),
                growth.receivers,
                micros(growth.cpu_us_per_sent_mib),
                percent(growth.cpu_growth),
            ));
        }
        lines.push(format!(
            "flagged payloads of {} bytes and more are lent here: {}",
            self.crossover_bytes, self.crossover_reason
        ));
        lines.push(format!(
            "others of {ARENA_FROM_BYTES} bytes and more lie in memory of the broker's once there are many \
             (apart_from_bytes): written once, they cost each further recipient a reference; never as \
             memory files unasked: a new one costs each recipient a mapping, more than copies do"
        ));
        lines.push(format!(
            "the flag where it does not pay, at {} bytes: CPU {}, rate {}",
            self.flag_cost_bytes,
            percent(self.flag_cpu_ratio),
            percent(self.flag_rate_ratio),
        ));
        lines.join("\n")
    }
}

/// What a broker without a configuration has as `apart_from_bytes`, as those that are measured do.
const ARENA_FROM_BYTES: u32 = 4 << 10;

/// Microseconds of all processes for each MiB that was sent, without those in which payloads were read.
pub(crate) fn cpu_per_mib(plan: &Plan, outcomes: &[Outcome]) -> Option<f64> {
    let of_one = |outcome: &Outcome| {
        let mib = outcome.sent as f64 * plan.size as f64 / f64::from(1 << 20);
        (mib > 0.0).then(|| outcome.cpu.saturating_sub(outcome.reading).as_secs_f64() * 1e6 / mib)
    };
    median(outcomes.iter().filter_map(of_one).collect())
}

/// What is told of large payloads in the object of a system.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Large {
    reading: &'static str,
    /// The receivers' own reading apart.
    cpu_us_per_sent_mib: Option<f64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    growth: Option<Growth>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    beside: Option<BesideFigures>,
}

impl Large {
    pub(crate) fn new(plan: &Plan, outcomes: &[Outcome]) -> Option<Self> {
        let reading = plan.reading?;
        let cpu_us_per_sent_mib = cpu_per_mib(plan, outcomes);
        Some(Self { reading: reading.name(), cpu_us_per_sent_mib, growth: None, beside: None })
    }

    pub(crate) fn reading(&self) -> &'static str {
        self.reading
    }
}

impl Figures {
    /// Adds what was measured beside, to our own.
    pub(crate) fn add(&mut self, beside: &BesideFigures) {
        let (is_ours, system) = (self.is_ours(), self.system());
        if let Some(large) = self.large_mut() {
            large.growth = beside.growth(system, large.reading);
            large.beside = is_ours.then(|| beside.clone());
        }
    }
}
