use proptest::prelude::*;

use super::spec::{ALGORITHMS, SpecError};
use super::*;

const SPECS: &[&str] = &[
    "lz4",
    "lz4(acceleration=8)",
    "lz4(acceleration=65537)",
    "lz4-flex",
    "zstd",
    "zstd(level=-131072)",
    "zstd(level=-5)",
    "zstd(level=1)",
    "zstd(level=9)",
    "zstd(level=22)",
    "lz4hc",
    "lz4hc(level=1)",
    "lz4hc(level=12)",
    "deflate",
    "deflate(level=1,winbits=9)",
    "deflate(level=9,winbits=-15)",
    "deflate(level=0,winbits=15)",
    "lzo",
];

/// Where the pool stores a page raw, about.
const LIMIT: usize = 3616;

/// More than any codec here makes of a page.
const AMPLE: usize = PAGE_SIZE + 512;

fn spec(text: &str) -> CodecSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn ready(text: &str) -> (Codec, Workspace) {
    let codec = Codec::new(spec(text)).unwrap();
    let workspace = codec.workspace().unwrap();
    (codec, workspace)
}

fn object(codec: &Codec, ws: &mut Workspace, page: &Page) -> Vec<u8> {
    let mut out = [0; AMPLE];
    let len = codec.compress(ws, page, &mut out).unwrap().expect("any page fits in AMPLE");
    out[..len].to_vec()
}

/// xorshift64*: the same bytes on every machine.
fn random_bytes(seed: u64) -> impl Iterator<Item = u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    })
}

fn page_of(bytes: impl Iterator<Item = u8>) -> Page {
    let mut page = [0; PAGE_SIZE];
    page.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    page
}

/// Pages of many kinds, from the emptiest to noise.
fn gallery() -> Vec<Page> {
    let mut pages = vec![
        [0; PAGE_SIZE],
        [0xff; PAGE_SIZE],
        page_of((0..).map(|i: u32| (i / 16) as u8)),
        page_of(b"the quick brown fox jumps over the lazy dog, and ".iter().copied().cycle()),
        page_of(random_bytes(1)),
        page_of(random_bytes(2).map(|b| b & 3)),
        page_of(random_bytes(3).map(|b| b'a' + b % 26)),
        // A page of pointers: the low halves differ, the high ones do not.
        page_of(random_bytes(4).enumerate().map(|(i, b)| [b, b, b, 0x7f, 0x55, 0x55, 0, 0][i % 8])),
        // Noise with a repeated quarter, and noise in one half only.
        page_of(random_bytes(5).take(1024).collect::<Vec<_>>().into_iter().cycle()),
        page_of(random_bytes(6).take(2048)),
    ];
    for period in [2, 3, 7, 15, 16, 17, 255, 256, 1000] {
        pages.push(page_of(
            random_bytes(period as u64).take(period).collect::<Vec<_>>().into_iter().cycle(),
        ));
    }
    for place in [0, 1, 2047, 4090, 4095] {
        let mut page = [0; PAGE_SIZE];
        page[place] = 1;
        pages.push(page);
    }
    // Noise that gives way to zeroes ever later: around every limit a caller may set.
    for noise in (3000..PAGE_SIZE).step_by(64) {
        pages.push(page_of(random_bytes(noise as u64).take(noise)));
    }
    pages
}

/// Pages of runs, noise and copies of what went before, in random order.
fn any_page() -> impl Strategy<Value = Page> {
    let piece = (any::<u8>(), 1..600_usize, any::<u64>(), 1..4000_usize);
    prop::collection::vec(piece, 1..40).prop_map(|pieces| {
        let mut bytes = Vec::with_capacity(2 * PAGE_SIZE);
        for (kind, len, seed, back) in pieces {
            match kind % 3 {
                0 => bytes.extend(std::iter::repeat_n(kind, len)),
                1 => bytes.extend(random_bytes(seed).take(len)),
                _ => {
                    let start = bytes.len().saturating_sub(back);
                    bytes.extend_from_within(start..bytes.len().min(start + len));
                }
            }
        }
        page_of(bytes.into_iter())
    })
}

#[test]
fn specs_parse_and_print() {
    for (text, parsed, printed) in [
        ("lz4", CodecSpec::Lz4 { acceleration: 1 }, "lz4"),
        ("lz4(acceleration=1)", CodecSpec::Lz4 { acceleration: 1 }, "lz4"),
        ("lz4(acceleration=2)", CodecSpec::Lz4 { acceleration: 2 }, "lz4(acceleration=2)"),
        ("lz4(level=2)", CodecSpec::Lz4 { acceleration: 2 }, "lz4(acceleration=2)"),
        ("lz4( level = 65537 )", CodecSpec::Lz4 { acceleration: 65537 }, "lz4(acceleration=65537)"),
        ("lz4-flex", CodecSpec::Lz4Flex, "lz4-flex"),
        ("zstd", CodecSpec::Zstd { level: 3 }, "zstd"),
        ("zstd(level=3)", CodecSpec::Zstd { level: 3 }, "zstd"),
        ("zstd(level=22)", CodecSpec::Zstd { level: 22 }, "zstd(level=22)"),
        ("zstd(level=-131072)", CodecSpec::Zstd { level: -131072 }, "zstd(level=-131072)"),
        ("zstd(level=+1)", CodecSpec::Zstd { level: 1 }, "zstd(level=1)"),
        ("lz4hc(level=9)", CodecSpec::Lz4Hc { level: 9 }, "lz4hc"),
        ("lz4hc(level=12)", CodecSpec::Lz4Hc { level: 12 }, "lz4hc(level=12)"),
        ("deflate", CodecSpec::Deflate { level: -1, winbits: -11 }, "deflate"),
        ("deflate(winbits=9)", CodecSpec::Deflate { level: -1, winbits: 9 }, "deflate(winbits=9)"),
        (
            "deflate(winbits=-15, level=9)",
            CodecSpec::Deflate { level: 9, winbits: -15 },
            "deflate(level=9,winbits=-15)",
        ),
        ("lzo", CodecSpec::Lzo, "lzo"),
    ] {
        assert_eq!(spec(text), parsed, "{text}");
        assert_eq!(parsed.to_string(), printed);
        assert_eq!(spec(printed), parsed, "{printed}");
        assert!(ALGORITHMS.contains(&parsed.algorithm()));
    }
    assert_eq!(spec(ALGORITHMS[0]), CodecSpec::default());
    ALGORITHMS.iter().for_each(|name| assert_eq!(spec(name).to_string(), *name));
}

#[test]
fn bad_specs_say_what_would_do() {
    const FORM: &str = "is not of the form NAME or NAME(PARAMETER=VALUE), such as zstd(level=3)";
    const CHOOSE: &str = "choose one of lz4, lz4-flex, lz4hc, zstd, deflate, lzo";
    for (text, message) in [
        ("", format!("there is no algorithm ``: {CHOOSE}").as_str()),
        ("lz5(level=9)", &format!("there is no algorithm `lz5`: {CHOOSE}")),
        ("LZ4", &format!("there is no algorithm `LZ4`: {CHOOSE}")),
        (
            "lzo-rle",
            &format!(
                "`lzo-rle` is not here: it is a dialect of lzo that the kernel alone has, and lzo takes its place ({CHOOSE})"
            ),
        ),
        (
            "842",
            &format!(
                "`842` is not here: it is made for a coprocessor of POWER machines, and zstd takes its place ({CHOOSE})"
            ),
        ),
        ("zstd(", &format!("`zstd(` {FORM}")),
        ("zstd()", &format!("`zstd()` {FORM}")),
        ("zstd(3)", &format!("`zstd(3)` {FORM}")),
        ("zstd(level=3)x", &format!("`zstd(level=3)x` {FORM}")),
        ("zstd(level=3,)", &format!("`zstd(level=3,)` {FORM}")),
        ("lz4(dict=x)", "lz4 has no parameter `dict`: it takes acceleration=1 to 65537"),
        (
            "zstd(acceleration=1)",
            "zstd has no parameter `acceleration`: it takes level=-131072 to 22",
        ),
        ("lz4-flex(level=1)", "lz4-flex has no parameter `level`: it takes none"),
        ("lz4(level=1,acceleration=1)", "lz4's acceleration is given twice"),
        (
            "lz4(acceleration=0)",
            "lz4's acceleration is a whole number from 1 to 65537, which `0` is not",
        ),
        (
            "lz4(level=65538)",
            "lz4's acceleration is a whole number from 1 to 65537, which `65538` is not",
        ),
        ("zstd(level=23)", "zstd's level is a whole number from -131072 to 22, which `23` is not"),
        ("lz4hc(level=0)", "lz4hc's level is a whole number from 1 to 12, which `0` is not"),
        ("deflate(level=10)", "deflate's level is a whole number from -1 to 9, which `10` is not"),
        (
            "deflate(winbits=8)",
            "deflate's winbits is a whole number from -15 to -9 or 9 to 15, which `8` is not",
        ),
        ("deflate(winbits=9,winbits=9)", "deflate's winbits is given twice"),
        (
            "deflate(dict=1)",
            "deflate has no parameter `dict`: it takes level=-1 to 9 and winbits=-15 to -9 or 9 to 15",
        ),
        ("lzo(level=1)", "lzo has no parameter `level`: it takes none"),
        ("zstd(level=)", "zstd's level is a whole number from -131072 to 22, which `` is not"),
        (
            "zstd(level=1.5)",
            "zstd's level is a whole number from -131072 to 22, which `1.5` is not",
        ),
        (
            "zstd(level=99999999999)",
            "zstd's level is a whole number from -131072 to 22, which `99999999999` is not",
        ),
    ] {
        let error = text.parse::<CodecSpec>().expect_err(text).to_string();
        assert_eq!(error, message, "{text}");
    }
}

#[test]
fn a_codec_is_not_made_of_a_spec_out_of_range() {
    for spec in [
        CodecSpec::Lz4 { acceleration: 0 },
        CodecSpec::Lz4 { acceleration: 65538 },
        CodecSpec::Zstd { level: 23 },
        CodecSpec::Zstd { level: i32::MIN },
        CodecSpec::Lz4Hc { level: 13 },
        CodecSpec::Deflate { level: 1, winbits: 0 },
        CodecSpec::Deflate { level: 1, winbits: i32::MIN },
    ] {
        let error = Codec::new(spec).expect_err("out of range");
        assert!(matches!(error, CodecError::Spec(SpecError::Value { .. })), "{error:?}");
    }
}

#[test]
fn codecs_are_shared_and_workspaces_handed_over() {
    fn shared<T: Send + Sync>() {}
    fn handed_over<T: Send>() {}
    shared::<Codec>();
    handed_over::<Workspace>();
}

/// A table of these codecs in order, of which `primary` is the primary one.
fn table(primary: u8, texts: &[&str]) -> CodecTable {
    let others = (0..).zip(texts).map(|(number, text)| (number, spec(text)));
    CodecTable::new(primary, spec(texts[usize::from(primary)]), others).unwrap()
}

#[test]
fn one_workspace_serves_all_codecs_of_a_table() {
    let codecs = table(4, &SPECS[..ENTRIES]);
    assert_eq!(codecs.primary().spec(), spec(SPECS[4]));
    let mut ws = codecs.workspace().unwrap();
    for round in 0..3 {
        for (number, text) in (0..).zip(&SPECS[..ENTRIES]) {
            let (alone, mut alone_ws) = ready(text);
            let page = &gallery()[round + 3];
            let object = object(codecs.get(number).unwrap(), &mut ws, page);
            assert!(object == self::object(&alone, &mut alone_ws, page), "{text} of a table");
            let mut back = [0; PAGE_SIZE];
            codecs.decompress(number, &mut ws, &object, &mut back).unwrap();
            assert!(back == *page, "{text}");
        }
    }
}

#[test]
fn a_workspace_has_what_was_used_and_no_more_than_four_compressors() {
    let codecs = table(2, &SPECS[..ENTRIES]);
    let mut ws = codecs.workspace().unwrap();
    assert_eq!(ws.ready(), [spec(SPECS[2])], "the others are not used yet");
    for number in [6, 0, 6, 2, 9] {
        object(codecs.get(number).unwrap(), &mut ws, &[1; PAGE_SIZE]);
    }
    assert_eq!(ws.ready(), [0, 2, 6, 9].map(|number: usize| spec(SPECS[number])));
    for number in [7, 8, 3] {
        object(codecs.get(number).unwrap(), &mut ws, &[1; PAGE_SIZE]);
        assert_eq!(ws.ready().len(), 4);
        assert!(ws.ready().contains(&spec(SPECS[usize::from(number)])));
    }
}

#[test]
fn a_workspace_of_another_table_compresses_by_the_codec_that_is_asked_for() {
    let (fast, mut fast_ws) = ready("zstd(level=-5)");
    let (_, mut ws) = ready("zstd(level=9)");
    let page = page_of(random_bytes(3).map(|b| b'a' + b % 26));
    assert!(object(&fast, &mut ws, &page) == object(&fast, &mut fast_ws, &page));
}

#[test]
fn a_codec_that_is_added_is_used_from_then_on() {
    let codecs = table(0, &["lz4"]);
    assert!(codecs.set_primary(3).is_err(), "there is none");
    assert!(codecs.find(spec("deflate")).is_none());
    codecs.add(Codec::numbered(spec("deflate"), 3).unwrap());
    assert_eq!(codecs.primary().number(), 0);
    codecs.set_primary(3).unwrap();
    assert_eq!((codecs.primary().number(), codecs.primary().spec()), (3, spec("deflate")));
    assert_eq!(codecs.find(spec("deflate")).map(Codec::number), Some(3));
    // An entry that is there stays.
    codecs.add(Codec::numbered(spec("lzo"), 0).unwrap());
    assert_eq!(codecs.get(0).unwrap().spec(), spec("lz4"));
}

#[test]
fn what_a_superblock_says_of_a_codec_leads_to_it_again() {
    for text in SPECS {
        let spec = spec(text);
        let (name, level, parameters) = (spec.algorithm(), spec.level(), spec.parameters());
        assert_eq!(CodecSpec::of(name, level, parameters), Some(spec), "{text}");
        assert_eq!(CodecSpec::of(name, level, parameters ^ 1 << 20), None, "{text}");
    }
    assert_eq!(CodecSpec::of("lzo", 1, 0), None);
    assert_eq!(CodecSpec::of("deflate", 9, 8), None);
    assert_eq!(CodecSpec::of("lz5", 0, 0), None);
}

#[test]
fn a_number_without_an_entry_is_an_error() {
    let others = [(3, spec("zstd"))];
    let codecs = CodecTable::new(1, spec("lz4"), others).unwrap();
    let mut ws = codecs.workspace().unwrap();
    let numbers: Vec<u8> = codecs.iter().map(Codec::number).collect();
    assert_eq!(numbers, [1, 3]);
    for number in (0..=u8::MAX).filter(|number| !numbers.contains(number)) {
        let error = codecs.decompress(number, &mut ws, &[0; 9], &mut [0; PAGE_SIZE]).unwrap_err();
        assert_eq!(error.to_string(), format!("the disk's codec table has no entry {number}"));
    }
}

#[test]
fn every_kind_of_page_comes_back() {
    for text in SPECS {
        let (codec, mut ws) = ready(text);
        for (i, page) in gallery().iter().enumerate() {
            let object = object(&codec, &mut ws, page);
            let mut back = [0xAA; PAGE_SIZE];
            codec.decompress(&mut ws, &object, &mut back).unwrap();
            assert!(back == *page, "{text}: page {i}");
        }
    }
}

#[test]
fn a_limit_is_kept_and_changes_no_byte() {
    const EDGE: usize = 64;
    for text in SPECS {
        let (codec, mut ws) = ready(text);
        for (i, page) in gallery().iter().enumerate() {
            let object = object(&codec, &mut ws, page);
            let near = object.len().saturating_sub(20)..object.len() + 20;
            for limit in [0, 1, 2, 13, 100, 1000, LIMIT, PAGE_SIZE].into_iter().chain(near) {
                let mut out = vec![0xEE; EDGE + limit + EDGE];
                let len = codec.compress(&mut ws, page, &mut out[EDGE..EDGE + limit]).unwrap();
                let at = format!("{text}: page {i} of {} bytes in {limit}", object.len());
                assert!(out[..EDGE].iter().all(|&byte| byte == 0xEE), "{at}");
                assert!(out[EDGE + limit..].iter().all(|&byte| byte == 0xEE), "{at}");
                match len {
                    Some(len) => assert!(out[EDGE..EDGE + len] == object, "{at}"),
                    // zstd may want a few bytes to spare.
                    None => assert!(limit < object.len() + 16, "{at}"),
                }
                if text.starts_with("lz4") {
                    assert_eq!(len.is_some(), object.len() <= limit, "{at}");
                }
            }
        }
    }
}

#[test]
fn noise_does_not_fit() {
    for text in SPECS {
        let (codec, mut ws) = ready(text);
        let noise = page_of(random_bytes(77));
        assert_eq!(codec.compress(&mut ws, &noise, &mut [0; LIMIT]), Ok(None), "{text}");
        assert_eq!(codec.compress(&mut ws, &noise, &mut []), Ok(None), "{text}");
        // And the workspace is none the worse for it.
        let (page, mut back) = ([7; PAGE_SIZE], [0; PAGE_SIZE]);
        let object = object(&codec, &mut ws, &page);
        codec.decompress(&mut ws, &object, &mut back).unwrap();
        assert!(back == page, "{text}");
    }
}

#[test]
fn an_object_depends_on_nothing_done_before() {
    for text in SPECS {
        let (codec, mut used) = ready(text);
        let pages = gallery();
        let first: Vec<_> = pages.iter().map(|page| object(&codec, &mut used, page)).collect();
        for (page, first) in pages.iter().zip(&first).rev() {
            let _ = codec.compress(&mut used, page, &mut [0; 100]);
            let _ = codec.decompress(&mut used, &first[..first.len() / 2], &mut [0; PAGE_SIZE]);
            assert!(object(&codec, &mut used, page) == *first, "{text}: used workspace");
            let mut fresh = codec.workspace().unwrap();
            assert!(object(&codec, &mut fresh, page) == *first, "{text}: fresh workspace");
        }
    }
}

#[test]
fn both_lz4_read_what_the_other_wrote() {
    let (c, mut c_ws) = ready("lz4");
    let (rust, mut rust_ws) = ready("lz4-flex");
    for page in gallery() {
        let mut back = [0; PAGE_SIZE];
        rust.decompress(&mut rust_ws, &object(&c, &mut c_ws, &page), &mut back).unwrap();
        assert!(back == page);
        c.decompress(&mut c_ws, &object(&rust, &mut rust_ws, &page), &mut back).unwrap();
        assert!(back == page);
    }
}

#[test]
fn lz4_decodes_into_shared_memory_what_it_decodes_into_a_page() {
    for text in ["lz4", "lz4hc"] {
        decodes_into_shared_memory(text);
    }
}

fn decodes_into_shared_memory(text: &str) {
    let (lz4, mut ws) = ready(text);
    let mut memory = vec![0; PAGE_SIZE + 64];
    for page in gallery() {
        let object = object(&lz4, &mut ws, &page);
        memory.fill(0xa5);
        let all = VolatileSlice::from(&mut memory[..]);
        let place = all.subslice(32, PAGE_SIZE).unwrap();
        lz4.decompress_shared(&object, &place).unwrap();
        let cut = lz4.decompress_shared(&object[..object.len() - 1], &place);
        assert!(cut.is_err(), "{} bytes", object.len());
        lz4.decompress_shared(&object, &place).unwrap();
        let short = all.subslice(0, PAGE_SIZE - 1).unwrap();
        assert!(lz4.decompress_shared(&object, &short).is_err());
        assert_eq!(memory[32..32 + PAGE_SIZE], page);
        assert!(memory[..32].iter().chain(&memory[32 + PAGE_SIZE..]).all(|byte| *byte == 0xa5));
    }
    for other in ["lz4-flex", "zstd", "deflate", "lzo"] {
        let (codec, mut ws) = ready(other);
        let object = object(&codec, &mut ws, &gallery()[0]);
        let place = VolatileSlice::from(&mut memory[..PAGE_SIZE]);
        assert!(!codec.writes_shared());
        assert!(codec.decompress_shared(&object, &place).is_err(), "{other}");
    }
}

#[test]
fn objects_cut_short_or_drawn_out_are_errors() {
    for text in SPECS {
        let (codec, mut ws) = ready(text);
        for (i, page) in gallery().iter().enumerate().step_by(3) {
            let mut object = object(&codec, &mut ws, page);
            let mut back = [0; PAGE_SIZE];
            for len in (0..object.len()).rev().take(40).chain(0..object.len().min(20)) {
                let result = codec.decompress(&mut ws, &object[..len], &mut back);
                assert!(result.is_err(), "{text}: {len} bytes of page {i}");
            }
            for extra in 1..20 {
                object.push(0);
                let result = codec.decompress(&mut ws, &object, &mut back);
                assert!(result.is_err(), "{text}: {extra} bytes more of page {i}");
            }
        }
    }
}

#[test]
fn lz4_objects_that_hold_no_page_are_errors() {
    // Ten literals; one literal repeated 10000 times, and 4091 times; a match before the start; a
    // match of offset 0.
    let repeated = |times: usize| {
        let mut object = vec![0x1F, b'x', 1, 0];
        object.extend(std::iter::repeat_n(255, (times - 19) / 255));
        object.push(((times - 19) % 255) as u8);
        object.extend([0x50, 1, 2, 3, 4, 5]);
        object
    };
    let mut page = [0; PAGE_SIZE];
    for text in ["lz4", "lz4-flex"] {
        let (codec, mut ws) = ready(text);
        let mut decode = |object: &[u8]| codec.decompress(&mut ws, object, &mut page);
        let short = decode(&[0xA0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap_err();
        assert_eq!(
            short.to_string(),
            format!("an object of {text} decompresses to 10 bytes instead of the 4096 of a page")
        );
        let damaged = |result| matches!(result, Err(CodecError::Corrupt { .. }));
        assert!(damaged(decode(&[])));
        assert!(damaged(decode(&repeated(10_000))));
        assert_eq!(decode(&repeated(4090)), Ok(()));
        assert!(damaged(decode(&repeated(4091))));
        assert!(damaged(decode(&[0x1F, b'x', 2, 0, 255, 255, 0, 0x50, 1, 2, 3, 4, 5])));
        // The C library reads on after an offset of 0, and ends with too few bytes.
        assert!(decode(&[0x1F, b'x', 0, 0, 255, 255, 0, 0x50, 1, 2, 3, 4, 5]).is_err());
        assert!(damaged(decode(&vec![255; 1 << 20])));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_page_comes_back(page in any_page(), which in 0..SPECS.len()) {
        let (codec, mut ws) = ready(SPECS[which]);
        let mut out = [0; LIMIT];
        if let Some(len) = codec.compress(&mut ws, &page, &mut out).unwrap() {
            let mut back = [0; PAGE_SIZE];
            codec.decompress(&mut ws, &out[..len], &mut back).unwrap();
            prop_assert!(back == page);
        }
    }

    #[test]
    fn damage_is_an_error_or_another_page(
        page in any_page(),
        which in 0..SPECS.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (codec, mut ws) = ready(SPECS[which]);
        let mut object = object(&codec, &mut ws, &page);
        for (place, byte) in damage {
            let place = place.index(object.len());
            object[place] = byte;
        }
        let mut back = [0; PAGE_SIZE];
        let _ = codec.decompress(&mut ws, &object, &mut back);
        // Whatever it was, the next object is read rightly.
        let (good, mut back) = (self::object(&codec, &mut ws, &page), [0; PAGE_SIZE]);
        codec.decompress(&mut ws, &good, &mut back).unwrap();
        prop_assert!(back == page);
    }

    #[test]
    fn made_up_objects_never_panic(
        object in prop::collection::vec(any::<u8>(), 0..PAGE_SIZE + 100),
        which in 0..SPECS.len(),
    ) {
        let (codec, mut ws) = ready(SPECS[which]);
        let _ = codec.decompress(&mut ws, &object, &mut [0; PAGE_SIZE]);
    }
}
