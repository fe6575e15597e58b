//! What a guest can put into its rings and descriptors.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhost_user_zram::internals::fuzzing::virtqueue(input));
