//! What an operation of a tree allocates on the calling thread is what `benches/ratchet.txt` says.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};

#[path = "../benches/support/operations.rs"]
mod operations;

use operations::{OPERATIONS, Subject, allowed};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Of each `counted` closure.
    static COUNTS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

#[allow(unsafe_code)]
// SAFETY: every call goes to `System` unchanged, which is a correct allocator; counting touches a
// thread-local that needs neither memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(work: impl FnOnce()) {
    let before = COUNT.get();
    work();
    let count = COUNT.get() - before;
    COUNTS.with_borrow_mut(|counts| counts.push(count));
}

fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    let before = COUNT.get();
    let result = work();
    COUNT.set(before);
    result
}

#[test]
fn operations_allocate_as_often_as_they_may() {
    let measured = OPERATIONS.iter().map(|operation| {
        Subject::new().run(operation);
        // Now and then a table grows.
        let mut counts = COUNTS.take();
        counts.sort_unstable();
        (*operation, counts[counts.len() / 2], allowed(operation, 1))
    });
    let measured: Vec<_> = measured.collect();
    for (operation, count, allowed) in &measured {
        println!("{operation:<20} {count:>5} allocations, allowed {allowed}");
    }
    let wrong: Vec<_> = measured.iter().filter(|(_, count, allowed)| count != allowed).collect();
    assert!(wrong.is_empty(), "(operation, allocations, allowed by benches/ratchet.txt): {wrong:?}");
}
