//! The other kernels than the usual one: exactness, witness, layouts and policy of each, in one boot per vendor.

use exitscope_lab::emulator::Vendor;
use exitscope_lab::kernel::Series;
use exitscope_tests::{Lane, machine_of};

use crate::{exactness, leaves, policy};

/// Exits of every kind.
const EXITS: u64 = 5_000;

#[test]
fn all_of_it_works_on_6_1() {
    all_of_it_works(Vendor::Amd, Series::V6_1);
}

#[test]
fn all_of_it_works_on_6_1_on_intel() {
    all_of_it_works(Vendor::Intel, Series::V6_1);
}

#[test]
fn all_of_it_works_on_7_2() {
    all_of_it_works(Vendor::Amd, Series::V7_2);
}

#[test]
fn all_of_it_works_on_7_2_on_intel() {
    all_of_it_works(Vendor::Intel, Series::V7_2);
}

fn all_of_it_works(vendor: Vendor, series: Series) {
    let steps = [exactness::steps(EXITS), leaves::steps(vendor), policy::steps(vendor)].concat();
    let told = machine_of(Lane { vendor, series }, "all", steps);
    exactness::check(&told, vendor, EXITS);
    leaves::check(&told, vendor);
    policy::check(&told, vendor);
}
