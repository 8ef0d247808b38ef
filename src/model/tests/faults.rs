//! Calls that fail, answers that are lost, power that goes.

use super::*;
use crate::model::Call;

#[test]
fn a_call_fails_without_effect() {
    let machine = Machine::bare();
    machine.kernel.fail_at(2, Errno::ENOMEM);
    machine.dm.list().unwrap();
    let before = machine.kernel.calls();
    assert_eq!(errno(machine.dm.create(&name("d"), None)), Errno::ENOMEM);
    assert_eq!(machine.kernel.calls(), before + 1);
    assert!(machine.dm.list().unwrap().is_empty());
}

#[test]
fn an_answer_is_lost() {
    let machine = Machine::with_pool();
    machine.kernel.lose_answer_at(1, Errno::EIO);
    assert_eq!(errno(machine.message("pool", "create_thin 1")), Errno::EIO);
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 0)]);
}

#[test]
fn a_cut_is_for_good() {
    let machine = Machine::with_pool();
    machine.kernel.cut_at(2);
    machine.message("pool", "create_thin 1").unwrap();
    assert!(!machine.kernel.is_cut());
    for id in 2..5 {
        assert_eq!(errno(machine.message("pool", &format!("create_thin {id}"))), Errno::EIO);
    }
    assert!(machine.kernel.is_cut());
    let machine = machine.power_cut();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 0)]);

    machine.kernel.cut_after(1);
    assert_eq!(errno(machine.message("pool", "create_thin 2")), Errno::EIO);
    assert_eq!(errno(machine.message("pool", "create_thin 3")), Errno::EIO);
    machine.kernel.heal();
    machine.message("pool", "create_thin 4").unwrap();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 0), (2, 0), (4, 0)]);
}

#[test]
fn the_old_kernel_is_dead_after_a_power_cut() {
    let machine = Machine::bare();
    let _next = machine.kernel.power_cut();
    assert_eq!(errno(machine.dm.list()), Errno::EIO);
}

#[test]
fn an_ioctl_that_this_kernel_lacks() {
    let machine = Machine::bare();
    machine.kernel.refuse(loopdev::LOOP_CTL_GET_FREE, Errno::ENOTTY);
    let control = machine.open("/dev/loop-control");
    let get_free = || machine.kernel.ioctl(&control, loopdev::LOOP_CTL_GET_FREE, Arg::Value(0));
    assert_eq!(get_free(), Err(Errno::ENOTTY));
    machine.kernel.allow(loopdev::LOOP_CTL_GET_FREE);
    assert_eq!(get_free(), Ok(0));
}

#[test]
fn the_log_counts_ioctls() {
    let machine = Machine::with_pool();
    machine.kernel.clear_log();
    machine.message("pool", "create_thin 1").unwrap();
    let call = |name, subject: &str| Call { name, subject: subject.to_owned() };
    assert_eq!(machine.kernel.log(), [call("DM_TARGET_MSG", "pool")]);
    machine.kernel.clear_log();
    machine.make("d");
    let expected =
        [call("DM_DEV_CREATE", "d"), call("stat", "/dev/mapper/d"), call("mknod", "/dev/mapper/d")];
    assert_eq!(machine.kernel.log(), expected);
}

#[test]
fn leftovers() {
    let mut machine = Machine::bare();
    assert!(machine.kernel.is_clean());
    machine.attach("file", 4096);
    machine.make("d");
    let left = machine.kernel.leftovers();
    assert_eq!((left[0].as_str(), left[2].as_str()), ("device d", "node /dev/mapper/d"));
    assert!(left[1].starts_with("loop0 on inode "));
}

#[test]
fn each_process_has_calls_and_faults_of_its_own() {
    let machine = Machine::with_pool();
    let other = Machine::boot(machine.kernel.process(), new_directory());
    machine.kernel.cut_at(1);
    assert_eq!(errno(machine.message("pool", "create_thin 1")), Errno::EIO);
    other.message("pool", "create_thin 2").unwrap();
    assert!(machine.kernel.is_cut() && !other.kernel.is_cut());
    assert_eq!(other.kernel.thin_devices("pool").unwrap(), [(2, 0)]);
    let _next = machine.kernel.power_cut();
    let late = other.kernel.process();
    assert!(other.kernel.is_cut() && late.is_cut());
}

#[test]
fn an_action_runs_before_the_planned_call() {
    let machine = Machine::with_pool();
    let other = Machine::boot(machine.kernel.process(), new_directory());
    machine.kernel.at_call(1, move || {
        other.message("pool", "create_thin 1").unwrap();
    });
    assert_eq!(errno(machine.message("pool", "create_thin 1")), Errno::EEXIST);
    assert_eq!(machine.kernel.call_elsewhere("write", "a file"), Ok(()));
    machine.kernel.fail_at(1, Errno::ENOSPC);
    assert_eq!(machine.kernel.call_elsewhere("write", "a file"), Err(Errno::ENOSPC));
    assert_eq!(machine.kernel.struck().unwrap().name, "write");
}

#[test]
fn a_failing_poll_loses_no_event() {
    let machine = Machine::bare();
    let mut events = machine.dm.events().unwrap();
    machine.dm.create(&name("d"), None).unwrap();
    machine.kernel.fail_at(1, Errno::ENOMEM);
    assert_eq!(errno(events.next().unwrap()), Errno::ENOMEM);
    assert!(matches!(events.next(), Some(Ok(crate::dm::DeviceEvent::Added(_)))));
}
