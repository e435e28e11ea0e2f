//! Attacks that were once seen to work, by the letter of their kind: what each tries must go on to fail.

mod a;
mod b;
mod g6;
