//! Attacks that were once seen to work, a file for what they try: each must go on to fail.

mod before_proof;
mod filter_socket;
mod overtaken_allows;
