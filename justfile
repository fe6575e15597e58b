# Shortcuts: `just NAME`. They call what works without just, too.

# Lists the recipes.
default:
    @just --list --unsorted

# Formats, lints, checks shell scripts, dependencies and the documentation of the code.
check:
    tests/all check docs deny

# Runs everything that CI runs. `just test --full` runs the long tests, too.
test *options:
    tests/all {{ options }}

# Runs the unit and integration tests only.
unit:
    tests/all test

# Explores the schedules of the lock, the pool and the engine's queue (loom and shuttle).
loom:
    tests/all loom

# Runs the fuzz targets for a fixed number of inputs. `just fuzz --times 60 virtqueue` runs one for longer.
fuzz *options:
    fuzz/run {{ options }}

# Compares the disk with a plain model for a minute.
model:
    tests/all model

# Boots guests. Options: see `guest-tests/run --help`.
guests *options:
    guest-tests/run {{ options }}

# Measures codecs, pool and requests. Options follow `--`: see the head of each file in benches/.
bench *options:
    cargo bench {{ options }}

# Measures the daemon beside the kernel's own zram (a zram module, root).
compare-zram *options:
    benches/compare-zram {{ options }}

# Measures the daemon beside kernel zram, qemu-storage-daemon and nbdkit (root). Options: `benches/compare --help`.
compare *options:
    benches/compare {{ options }}

# Measures the daemon beside the zram of a guest's own kernel. Options: `benches/compare-guest --help`.
compare-guest *options:
    benches/compare-guest {{ options }}

# Builds the documentation of the code, which is then in target/doc.
docs:
    tests/all docs

# Writes the generated files of dist/ anew: man page and completions.
dist:
    VUZ_UPDATE=1 cargo test --test dist man_page
