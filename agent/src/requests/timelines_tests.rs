use proptest::prelude::*;

use super::*;
use crate::requests::IN_FLIGHT;

const PROCESS: ProcessKey = (7, 100);

/// A server's stint of the connection `id` on thread 1, named after it.
fn stint(id: u64, from_ns: u64, to_ns: u64) -> Stint {
    Stint {
        key: (id, from_ns),
        process: PROCESS,
        tid: 1,
        role: Role::Server,
        to_ns,
        moved: false,
        name: if to_ns == IN_FLIGHT {
            Name::Awaited
        } else {
            name(id)
        },
    }
}

fn name(id: u64) -> Name {
    let mut names = [Name::None, Name::Operation("search")].into_iter();
    names.nth(id as usize % 2).unwrap_or_default()
}

fn moment(at_ns: u64) -> (Moment, u64) {
    let moment = Moment {
        tid: 1,
        at_ns,
        lasts_ns: 0,
    };
    (moment, at_ns)
}

/// What is told of each moment on the server's side until `until_ns`.
fn advance(
    timelines: &mut Timelines,
    stints: Vec<Stint>,
    until_ns: u64,
    moments: &[u64],
) -> Vec<(u64, InFlight)> {
    let mut moments = moments.iter().copied().map(moment).collect();
    let mut told = Vec::new();
    timelines.advance(stints, until_ns, &mut moments, |at_ns, server, _| {
        told.push((at_ns, server));
    });
    told
}

use InFlight::{Doubtful, Nothing, One, Several};

#[test]
fn a_moment_belongs_to_the_only_request_in_flight() {
    let mut timelines = Timelines::default();
    let told = advance(
        &mut timelines,
        vec![stint(1, 10, 20), stint(2, 30, 40)],
        100,
        &[5, 10, 20, 25, 35, 41],
    );
    let expected = [
        (5, Nothing),
        (10, One((1, 10))),
        (20, One((1, 10))),
        (25, Nothing),
        (35, One((2, 30))),
        (41, Nothing),
    ];
    assert_eq!(told, expected);
    assert_eq!(timelines.told((1, 10)), Told::Name(&name(1)));
}

#[test]
fn a_request_that_was_not_alone_is_told_until_then_alone() {
    let mut timelines = Timelines::default();
    // The second begins while the first goes on, and ends before it.
    let stints = vec![stint(1, 10, 50), stint(2, 20, 30)];
    let told = advance(&mut timelines, stints, 100, &[15, 25, 35, 45]);
    let expected = [
        (15, One((1, 10))),
        (25, Several),
        (35, Several),
        (45, Several),
    ];
    assert_eq!(told, expected);
}

#[test]
fn what_was_shared_before_is_remembered_without_samples() {
    let mut timelines = Timelines::default();
    let open = || vec![stint(1, 10, IN_FLIGHT)];
    assert_eq!(
        advance(&mut timelines, open(), 15, &[12]),
        [(12, One((1, 10)))]
    );
    // Nobody asks of this time.
    assert_eq!(advance(&mut timelines, vec![stint(2, 20, 30)], 40, &[]), []);
    assert_eq!(
        advance(&mut timelines, Vec::new(), 60, &[50]),
        [(50, Several)]
    );
    // The next one is alone again.
    let stints = vec![stint(1, 10, 65), stint(3, 70, IN_FLIGHT)];
    assert_eq!(
        advance(&mut timelines, stints, 80, &[66, 75]),
        [(66, Nothing), (75, One((3, 70)))]
    );
}

#[test]
fn moments_wait_until_all_is_known() {
    let mut timelines = Timelines::default();
    let mut moments = vec![moment(15), moment(25)];
    let mut told = Vec::new();
    let stints = vec![stint(1, 10, 30)];
    timelines.advance(stints, 20, &mut moments, |at, server, _| {
        told.push((at, server));
    });
    assert_eq!((moments.len(), told.len()), (1, 1));
    // It turns out that there was another one, told early.
    let stints = vec![stint(2, 22, 24)];
    timelines.advance(stints, 40, &mut moments, |at, server, _| {
        told.push((at, server));
    });
    assert_eq!(told, [(15, One((1, 10))), (25, Several)]);
}

#[test]
fn names_come_when_they_are_known() {
    let mut timelines = Timelines::default();
    advance(&mut timelines, vec![stint(1, 10, IN_FLIGHT)], 20, &[15]);
    assert_eq!(timelines.told((1, 10)), Told::Awaited);
    advance(&mut timelines, vec![stint(1, 10, 90)], 30, &[]);
    assert_eq!(timelines.told((1, 10)), Told::Name(&name(1)));
    timelines.forget_chosen(|_| false);
    assert_eq!(timelines.told((1, 10)), Told::Awaited);
}

#[test]
fn a_process_that_passes_exchanges_around_is_not_told_of() {
    let mut timelines = Timelines::default();
    let other_process = Stint {
        process: (8, 1),
        tid: 2,
        ..stint(9, 10, 20)
    };
    let stints = vec![stint(1, 10, 20), other_process];
    let mut moments = vec![
        moment(15),
        (
            Moment {
                tid: 2,
                ..moment(15).0
            },
            15,
        ),
    ];
    timelines.advance(stints, 30, &mut moments, |_, _, _| {});
    let moved = Stint {
        moved: true,
        tid: 3,
        ..stint(2, 25, 28)
    };
    advance(&mut timelines, vec![moved], 40, &[]);
    assert_eq!(timelines.told((1, 10)), Told::Moved);
    assert_eq!(timelines.told((9, 10)), Told::Name(&name(9)));
}

#[test]
fn who_passes_exchanges_around_is_remembered_for_ten_minutes() {
    let mut timelines = Timelines::default();
    let moved = Stint {
        moved: true,
        ..stint(1, 10, 20)
    };
    advance(&mut timelines, vec![moved], 30, &[]);
    // Nobody asks for a while.
    timelines.restart();
    let told_of = |timelines: &mut Timelines, key: StintKey| {
        let stints = vec![stint(key.0, key.1, key.1 + 10)];
        advance(timelines, stints, key.1 + 20, &[key.1 + 5]);
        timelines.told(key) == Told::Moved
    };
    assert!(told_of(&mut timelines, (3, REMEMBERED_NS - 50)));
    assert!(!told_of(&mut timelines, (5, REMEMBERED_NS + 50)));
}

#[test]
fn calls_of_a_client_do_not_count_as_requests() {
    let mut timelines = Timelines::default();
    let call = Stint {
        role: Role::Client,
        ..stint(2, 12, 30)
    };
    let mut told = Vec::new();
    let stints = vec![stint(1, 10, 40), call];
    let mut moments = vec![moment(20)];
    timelines.advance(stints, 50, &mut moments, |_, server, client| {
        told.push((server, client));
    });
    assert_eq!(told, [(One((1, 10)), One((2, 12)))]);
}

#[test]
fn a_wait_belongs_to_what_was_in_flight_when_it_began() {
    let mut timelines = Timelines::default();
    let wait = Moment {
        tid: 1,
        at_ns: 15,
        lasts_ns: 20,
    };
    let mut moments = vec![(wait, ())];
    let mut told = Vec::new();
    timelines.advance(
        vec![stint(1, 10, IN_FLIGHT)],
        30,
        &mut moments,
        |(), _, _| {},
    );
    assert_eq!(moments.len(), 1, "it goes on");
    timelines.advance(vec![stint(1, 10, 36)], 40, &mut moments, |(), server, _| {
        told.push(server);
    });
    assert_eq!(told, [One((1, 10))]);
}

#[test]
fn nothing_is_told_of_times_with_losses() {
    let mut timelines = Timelines::default();
    advance(&mut timelines, vec![stint(1, 10, IN_FLIGHT)], 20, &[]);
    timelines.doubt(50);
    assert_eq!(advance(&mut timelines, vec![], 40, &[30]), [(30, Doubtful)]);
    // What was in flight then stays doubtful.
    let stints = vec![stint(1, 10, 80), stint(2, 82, 90)];
    assert_eq!(
        advance(&mut timelines, stints, 100, &[60, 85]),
        [(60, Several), (85, One((2, 82)))]
    );
}

proptest! {
    /// However the stints come in, early or late as an end, each moment is told what a look at all of
    /// them at once tells.
    #[test]
    fn all_at_once_tells_the_same(
        stints in prop::collection::vec((0..200_u64, 0..60_u64, 1..4_u32, any::<bool>()), 0..25),
        mut moments in prop::collection::vec((0..300_u64, 1..4_u32), 0..60),
        step_ns in 1..120_u64,
    ) {
        let all: Vec<Stint> = stints
            .iter()
            .zip(1..)
            .map(|((from_ns, len_ns, tid, is_client), id)| Stint {
                tid: *tid,
                role: if *is_client { Role::Client } else { Role::Server },
                ..stint(id, *from_ns, from_ns + len_ns)
            })
            .collect();
        moments.sort_unstable();
        let expected = moments.iter().map(|(at_ns, tid)| {
            [Role::Server, Role::Client].map(|role| {
                let same = || all.iter().filter(|stint| stint.tid == *tid && stint.role == role);
                let mut open = same().filter(|s| s.from_ns() <= *at_ns && s.to_ns >= *at_ns);
                let Some(one) = open.next() else { return Nothing };
                let others = same().filter(|s| s.key != one.key);
                let mut overlap = others.filter(|s| s.from_ns() <= *at_ns && s.to_ns >= one.from_ns());
                if overlap.next().is_some() { Several } else { One(one.key) }
            })
        });
        let expected: Vec<_> = expected.collect();
        let mut timelines = Timelines::default();
        let mut told = Vec::new();
        let mut begin_ns = 0;
        while begin_ns <= 320 {
            let until_ns = begin_ns + step_ns;
            // Of this step: what begins, as in flight where it ends later, and what ends.
            let mut news = Vec::new();
            for stint in &all {
                let begins = (begin_ns..until_ns).contains(&stint.from_ns());
                let ends = (begin_ns..until_ns).contains(&stint.to_ns);
                if ends {
                    news.push(stint.clone());
                } else if begins {
                    let name = Name::Awaited;
                    news.push(Stint { to_ns: IN_FLIGHT, name, ..stint.clone() });
                }
            }
            let of_step = moments.iter().enumerate().filter(|(_, (at_ns, _))| (begin_ns..until_ns).contains(at_ns));
            let mut of_step: Vec<_> = of_step
                .map(|(at, (at_ns, tid))| (Moment { tid: *tid, at_ns: *at_ns, lasts_ns: 0 }, at))
                .collect();
            timelines.advance(news, until_ns - 1, &mut of_step, |at, server, client| {
                told.push((at, [server, client]));
            });
            prop_assert!(of_step.is_empty());
            begin_ns = until_ns;
        }
        told.sort_by_key(|(at, _)| *at);
        let told: Vec<_> = told.into_iter().map(|(_, told)| told).collect();
        prop_assert_eq!(told, expected);
    }
}
