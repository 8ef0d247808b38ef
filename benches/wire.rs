//! Encoders and decoders: `cargo bench --bench wire`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

use dm_thin::dm::wire::{Command, Payload, Request, Response};
use dm_thin::dm::{DmName, DmUuid, TargetSpec, TargetType};
use dm_thin::thin::PoolStatus;
use dm_thin::units::Sectors;

const HEADER: usize = 312;

fn encoders(criterion: &mut Criterion) {
    let name = DmName::new("dm-thin-254:0-131099-container").unwrap();
    let uuid = DmUuid::new("DMTHIN-0123456789abcdef0123456789abcdef-1234567").unwrap();
    let mut buffer = [0; 480];
    criterion.bench_function("encode DEV_CREATE", |bencher| {
        bencher.iter(|| Request::create(black_box(&name), Some(&uuid), None).encode(&mut buffer));
    });
    criterion.bench_function("encode TARGET_MSG create_snap", |bencher| {
        bencher.iter(|| {
            let (id, origin) = (black_box(1_234_567), black_box(7));
            let text = format_args!("create_snap {id} {origin}");
            let payload = Payload::Message { sector: Sectors(0), text: &text };
            Request::on(Command::TARGET_MSG, (&name).into()).payload(payload).encode(&mut buffer)
        });
    });
    let line = TargetSpec {
        start: Sectors(0),
        length: Sectors(20_971_520),
        target_type: TargetType::new("thin").unwrap(),
        parameters: &"253:0 1234567",
    };
    criterion.bench_function("encode TABLE_LOAD thin", |bencher| {
        bencher.iter(|| {
            let lines = [black_box(line)];
            let request = Request::on(Command::TABLE_LOAD, (&name).into()).payload(Payload::Table(&lines));
            request.encode(&mut buffer)
        });
    });
}

/// An answer with a payload behind its header.
fn answer(target_count: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let name = DmName::new("dm-thin-254:0-131099-container").unwrap();
    Request::on(Command::DEV_STATUS, (&name).into()).encode(&mut bytes).unwrap();
    let size = u32::try_from(HEADER + payload.len()).unwrap();
    bytes[12..16].copy_from_slice(&size.to_ne_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(HEADER).unwrap().to_ne_bytes());
    bytes[20..24].copy_from_slice(&target_count.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `struct dm_name_list` of that many devices, with event numbers, flags and uuids.
fn name_list(count: u32) -> Vec<u8> {
    let mut list = Vec::new();
    for index in 0..count {
        let begin = list.len();
        list.extend_from_slice(&(0xfd00_u64 | u64::from(index)).to_ne_bytes());
        list.extend_from_slice(&[0; 4]);
        list.extend_from_slice(format!("dm-thin-254:0-131099-vm-{index:06}\0").as_bytes());
        list.resize(list.len().next_multiple_of(8), 0);
        list.extend_from_slice(&[index, 1].map(u32::to_ne_bytes).concat());
        list.extend_from_slice(format!("DMTHIN-0123456789abcdef0123456789abcdef-{index}\0").as_bytes());
        list.resize(list.len().next_multiple_of(8), 0);
        if index + 1 < count {
            let next = u32::try_from(list.len() - begin).unwrap();
            list[begin + 8..begin + 12].copy_from_slice(&next.to_ne_bytes());
        }
    }
    list
}

/// `struct dm_target_spec` with the status of a pool.
fn pool_status() -> Vec<u8> {
    let text = b"7 1234/16384 123456/1638400 - rw discard_passdown queue_if_no_space - 1024 \0";
    let mut spec = vec![0; 40];
    spec[8..16].copy_from_slice(&209_715_200_u64.to_ne_bytes());
    spec[24..33].copy_from_slice(b"thin-pool");
    spec.extend_from_slice(text);
    spec.resize(spec.len().next_multiple_of(8), 0);
    let next = u32::try_from(spec.len()).unwrap();
    spec[20..24].copy_from_slice(&next.to_ne_bytes());
    spec
}

fn decoders(criterion: &mut Criterion) {
    let plain = answer(1, &[]);
    Response::decode(&plain).unwrap().device().unwrap();
    criterion.bench_function("decode DEV_STATUS", |bencher| {
        bencher.iter(|| Response::decode(black_box(&plain)).unwrap().device().unwrap());
    });
    let status = answer(1, &pool_status());
    criterion.bench_function("decode TABLE_STATUS of a pool", |bencher| {
        bencher.iter(|| {
            let lines = Response::decode(black_box(&status)).unwrap().targets().unwrap();
            lines[0].text.parse::<PoolStatus>().unwrap()
        });
    });
    for count in [10, 5000] {
        let list = answer(0, &name_list(count));
        assert_eq!(Response::decode(&list).unwrap().devices().unwrap().len(), count as usize);
        criterion.bench_function(&format!("decode LIST_DEVICES of {count}"), |bencher| {
            bencher.iter(|| Response::decode(black_box(&list)).unwrap().devices().unwrap());
        });
    }
}

criterion_group!(wire, encoders, decoders);
criterion_main!(wire);
