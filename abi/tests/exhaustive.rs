//! Every code of an exit, and every leaf that a guest can ask: all 2^32 of each.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use exitscope_abi::leaf::{DISCOVERY, LAST_OWN, Layout, Question, Reasons, may_be_ours};
use exitscope_abi::reason::Isa;

/// How many numbers of 32 bits are such.
fn count(is_such: impl Fn(u32) -> bool) -> usize {
    let among = |high: u32| (0..1 << 16).map(|low| u32::from(is_such(high << 16 | low))).sum::<u32>();
    (0..1 << 16).map(|high| among(high) as usize).sum()
}

/// Every place has its code, and all other codes have none: so no two codes share a place.
#[test]
fn every_code_has_its_own_place_or_none() {
    for isa in Isa::ALL {
        let reasons = isa.reasons();
        for (place, reason) in reasons.iter().enumerate() {
            assert_eq!(isa.dense(reason.code), Some(place), "{isa:?} {reason:?}");
        }
        assert_eq!(count(|code| isa.dense(code).is_some()), reasons.len(), "{isa:?}");
        assert_eq!(count(|code| isa.dense_nospec(code) != isa.dense(code)), 0, "{isa:?}");
    }
}

/// Exactly the documented leaves are ours, in every layout, and the cheap sieve lets all of them through.
#[test]
fn every_leaf_is_ours_or_not_as_documented() {
    for &layout in Layout::ALL {
        let course = match layout {
            Layout::Classic | Layout::Reordered => 0x4FFF_FFFC..=0x4FFF_FFFF,
            Layout::Combined => 0x4FFF_FFFE..=0x4FFF_FFFF,
        };
        let ours: Vec<u32> = (DISCOVERY..=LAST_OWN).chain(course).collect();
        let is_ours = |leaf| Question::parse(layout, leaf, 10).is_some();
        assert!(ours.iter().all(|&leaf| is_ours(leaf) && may_be_ours(leaf)), "{layout:?}");
        assert_eq!(count(is_ours), ours.len(), "{layout:?}");
    }
    assert_eq!(count(may_be_ours), 16);
}

/// A sub-leaf is a reason's code, all of it, or is of no consequence.
#[test]
fn every_sub_leaf_is_the_reason_or_nothing() {
    for &layout in Layout::ALL {
        for leaf in DISCOVERY..=0x4FFF_FFFF {
            let Some(question) = Question::parse(layout, leaf, 0) else { continue };
            let takes_reason = question.reasons() == Reasons::One(0);
            // Every bit alone, and the codes of both instruction sets.
            let bits = (0..32).map(|bit| 1 << bit);
            let codes = Isa::ALL.into_iter().flat_map(Isa::reasons).map(|reason| reason.code);
            for sub_leaf in bits.chain(codes).chain([u32::MAX]) {
                let asked = Question::parse(layout, leaf, sub_leaf).unwrap();
                let (address, expected) = if takes_reason {
                    assert_eq!(asked.reasons(), Reasons::One(sub_leaf));
                    assert_eq!(asked.scope(), question.scope());
                    (asked.address(layout), (leaf, sub_leaf))
                } else {
                    assert_eq!(asked, question);
                    (asked.address(layout), (leaf, 0))
                };
                assert_eq!(address, Some(expected));
            }
        }
    }
}
