# The commands of CONTRIBUTING.md: `just`, `just kernel 'tree::'`, `just fuzz decode`.

_default:
    @just --list

# Everything that every change has to pass.
ci:
    .ci/run

# Tests that need no kernel.
test *ARGS:
    cargo test --workspace --all-features {{ ARGS }}

# The kernel suite in a guest.
kernel *ARGS:
    tests/vm/run --only-kernel test {{ ARGS }}

# A shell in the guest.
shell:
    tests/vm/run shell

# Formatting, lints, spelling, documentation.
lint:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
    typos
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features

# The simulation with more worlds; a seed replays one of them.
simulate WORLDS='10000' SEED='0':
    DM_THIN_SIM_WORLDS={{ WORLDS }} DM_THIN_SIM_SEED={{ SEED }} cargo test --release --all-features --test sim

# Threads on one tree, in many orders.
orders ORDERS='10000':
    RUSTFLAGS="--cfg shuttle" DM_THIN_ORDERS={{ ORDERS }} cargo test --target-dir target/shuttle --features model --lib shuttle

# Real power cuts.
power CUTS='3':
    cargo test --locked --all-features --test power -- {{ CUTS }}

# One fuzz target.
fuzz TARGET SECONDS='600':
    cargo +nightly fuzz run {{ TARGET }} -- -max_total_time={{ SECONDS }}

# Licences, advisories and duplicates of the dependencies.
deny:
    cargo deny check

# Lines covered by the tests that need no kernel.
coverage:
    cargo llvm-cov --workspace --all-features --summary-only
