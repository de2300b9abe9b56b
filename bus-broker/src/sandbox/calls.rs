//! The system calls of a broker, each with who makes it.
//!
//! A call that is not here fails with `ENOSYS`. Where a call could do more than it is here for, its
//! arguments are looked at, those that are numbers: what a pointer points to cannot be judged, so
//! `clone3` is not here, and glibc falls back to `clone`.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::SandboxMode;

/// Lets this thread, and those that it starts, make these calls only.
pub(super) fn restrict(mode: SandboxMode) -> Result<(), seccompiler::Error> {
    let otherwise = match mode {
        SandboxMode::Log => SeccompAction::Log,
        _ => SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
    };
    seccompiler::apply_filter(&program(otherwise)?)
}

fn program(otherwise: SeccompAction) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in ALWAYS.iter().chain(OF_THIS_MACHINE) {
        rules.insert(*call, Vec::new());
    }
    for (call, cases) in conditional()? {
        rules.insert(call, cases);
    }
    let machine: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, machine)?.try_into()
}

/// Calls whose arguments matter; one of the rules has to hold.
fn conditional() -> Result<Vec<(c_long, Vec<SeccompRule>)>, BackendError> {
    let is =
        |argument: u8, value: u64| SeccompCondition::new(argument, Length::Dword, Is::Eq, value);
    let lacks = |argument: u8, bit: i32| {
        let bit = u64::from(bit.unsigned_abs());
        SeccompCondition::new(argument, Length::Dword, Is::MaskedEq(bit), 0)
    };
    let has = |argument: u8, bits: i32| {
        let bits = u64::from(bits.unsigned_abs());
        SeccompCondition::new(argument, Length::Dword, Is::MaskedEq(bits), bits)
    };
    let null = |argument: u8| SeccompCondition::new(argument, Length::Qword, Is::Eq, 0);
    let rule = |condition: Result<SeccompCondition, BackendError>| {
        condition.and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let one_of = |argument: u8, values: &[u64]| {
        values.iter().map(|value| rule(is(argument, *value))).collect::<Result<Vec<_>, _>>()
    };
    let number = |value: i32| u64::from(value.unsigned_abs());
    Ok(vec![
        // Threads, and no processes: the I/O threads, the helper's reader.
        (libc::SYS_clone, vec![rule(has(0, libc::CLONE_VM | libc::CLONE_THREAD))?]),
        // Memory for data: the allocator, stacks, rings, payloads.
        (libc::SYS_mmap, vec![rule(lacks(2, libc::PROT_EXEC))?]),
        (libc::SYS_mprotect, vec![rule(lacks(2, libc::PROT_EXEC))?]),
        // The service manager's socket.
        (libc::SYS_socket, vec![rule(is(0, number(libc::AF_UNIX)))?]),
        (libc::SYS_socketpair, vec![rule(is(0, number(libc::AF_UNIX)))?]),
        // Names of threads; names of memory, by the allocator.
        (libc::SYS_prctl, one_of(0, &[number(libc::PR_SET_NAME), number(libc::PR_SET_VMA)])?),
        // Non-blocking sockets, how much is in a socket, whether logs go to a terminal.
        (libc::SYS_ioctl, one_of(1, &[libc::FIONBIO, libc::FIONREAD, libc::TCGETS])?),
        // Limits are read and not set.
        (libc::SYS_prlimit64, vec![rule(null(2))?]),
        // A thread's own slices of the processor.
        (libc::SYS_sched_getattr, vec![rule(is(0, 0))?]),
        (libc::SYS_sched_setattr, vec![rule(is(0, 0))?]),
        // An abort signals itself.
        (libc::SYS_tgkill, vec![rule(is(0, u64::from(std::process::id())))?]),
    ])
}

const ALWAYS: &[c_long] = &[
    // Waiting and waking: event loop, signals, locks.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Sockets: clients, ingresses, the helper, the service manager.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Descriptors: logs, bells, what clients hand over.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    // Whether a pidfd's number is its process's.
    libc::SYS_fstatfs,
    libc::SYS_pipe2,
    // Files of a reload, its own sockets' ends. Landlock says which.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    // Memory, shared memory of rings and payloads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    // Processes of clients, the helper's end.
    libc::SYS_pidfd_open,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    // Threads' lives.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time, chance, the machine.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// Forms of the same that are older than the calls above.
#[cfg(target_arch = "x86_64")]
const OF_THIS_MACHINE: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OF_THIS_MACHINE: &[c_long] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_listed_that_starts_a_program_or_looks_into_another() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_kill,
            libc::SYS_fchmodat,
            libc::SYS_bind,
            libc::SYS_listen,
        ];
        for call in never {
            assert!(!ALWAYS.contains(&call) && !OF_THIS_MACHINE.contains(&call), "{call}");
        }
        program(SeccompAction::Log).expect("it compiles");
    }
}
