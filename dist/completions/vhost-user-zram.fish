complete -c vhost-user-zram -l socket-path -d 'Listen on a Unix socket at PATH; a stale one is replaced' -r -F
complete -c vhost-user-zram -l socket-mode -d 'Permissions of the socket, in octal; to connect is to write. Whatever the umask, the socket never has more of them [default: 600, and 660 with --socket-group]' -r
complete -c vhost-user-zram -l socket-owner -d 'User who owns the socket, by name or number [default: the daemon\'s]' -r
complete -c vhost-user-zram -l socket-group -d 'Group of the socket, by name or number, such as kvm for the QEMU of libvirt [default: the daemon\'s]' -r
complete -c vhost-user-zram -l fd -d 'Use the Unix socket inherited as descriptor N, a listening or a connected one' -r
complete -c vhost-user-zram -l name -d 'Name of the disk in the log and in the names of threads: up to 64 letters, digits, \'.\', \'_\' and \'-\' [default: the file name of --socket-path without its extension, else that of --state-dir]' -r
complete -c vhost-user-zram -l size -d 'Size of the disk in bytes, or with a suffix K, M, G or T (powers of 1024). Rounded up to 4096 bytes; at most 16376G, which is 8G less than 16T' -r
complete -c vhost-user-zram -l block-size -d 'Logical block that the guest is told of, 512 or 4096 bytes. Images are made for 512, and a BIOS boots from nothing else; with 4096 no write is less than a page [default: 512 with --load, else 4096; a disk that is there keeps its own]' -r
complete -c vhost-user-zram -l state-dir -d 'Keep the disk in files in DIR, which has to be on a tmpfs such as /run, so that it outlives the daemon: the next one with the same DIR goes on with it. DIR and files are the daemon\'s user\'s alone' -r -F
complete -c vhost-user-zram -l state-owner -d 'Accept a state whose directory and files belong to the user with this number; without this they have to belong to the daemon\'s own' -r
complete -c vhost-user-zram -l load -d 'Fill the disk from the raw image FILE, a regular file or a block device, at the start, or when its state is made' -r -F
complete -c vhost-user-zram -l load-format -d 'What the image of --load may be: auto refuses a file that begins like one of another format than raw (qcow2, VMDK, gzip, zstd and such), raw loads the bytes as they are' -r
complete -c vhost-user-zram -l algorithm -d 'How pages are compressed: lz4, lz4(acceleration=N), lz4-flex, zstd or zstd(level=N)' -r
complete -c vhost-user-zram -l num-queues -d 'Most virtqueues that a guest may have, 1 to 64. One that is not used costs nothing' -r
complete -c vhost-user-zram -l queue-size -d 'Largest virtqueue that a guest may have: a power of two, 2 to 32768 descriptors. A front end cannot ask for it: one whose queues are larger is refused' -r
complete -c vhost-user-zram -l queue-threads -d 'Most threads that serve the virtqueues; one starts when a queue of its own does [default: the CPUs]' -r
complete -c vhost-user-zram -l serial -d 'The disk\'s serial number, up to 20 bytes' -r
complete -c vhost-user-zram -l mem-limit -d 'Most memory for compressed pages and the table of what lies where (8 bytes a page, 12 with a state, by 512 pages), in bytes or with a suffix; writes that would need more fail. 0 is no limit' -r
complete -c vhost-user-zram -l engine -d 'Who compresses: auto (workers if the codec is slow, or the request large and workers idle), inline (the queue\'s thread), or offload (workers). [default: auto, with a model offload]' -r
complete -c vhost-user-zram -l engine-workers -d 'Threads that compress beside those of the queues [default: one for each CPU, or one less if the queues\' threads compress too]' -r
complete -c vhost-user-zram -l engine-queue -d 'Pages that may wait for a worker' -r
complete -c vhost-user-zram -l engine-cpus -d 'CPUs that workers run on, such as 2-3,6 [default: all]' -r
complete -c vhost-user-zram -l engine-model -d 'Experiment: make the engine behave like a device, such as latency=50us,per-kib=5us,reorder=8,refuse=10%,fail=1%,corrupt=0.1%,hang=0.1%,die=0.1%,timeout=100ms,seed=1. Implies offload unless --engine says otherwise' -r
complete -c vhost-user-zram -l host-reserve -d 'Memory that is left free for the rest of the host, or of the daemon\'s control group, in bytes or with a suffix: writes that would need it fail [default: a 32nd of it, at most 512M]' -r
complete -c vhost-user-zram -l memory-dir -d 'Keep the disk in unlinked files in DIR, which has to be on a tmpfs, so that its size bounds the disk. Without this, in anonymous memory' -r -F
complete -c vhost-user-zram -l watchdog -d 'Report requests that take longer than this, in the log and as `stalled_requests` in the statistics. 0 is never' -r
complete -c vhost-user-zram -l watchdog-fail -d 'Have requests that wait longer than this fail with an I/O error, which is counted as `expired_requests`; more than --watchdog. 0 is never. Time in which the daemon was stopped, frozen or asleep with its host does not count' -r
complete -c vhost-user-zram -l log-level -d 'How much is logged to stderr: off, error, warn, info, debug or trace' -r
complete -c vhost-user-zram -l print-capabilities -d 'Print what this back end can do, as JSON, and exit. All other options are ignored'
complete -c vhost-user-zram -l fd-store -d 'Keep the disk in memory that the service manager holds for the next daemon (FileDescriptorStoreMax= of systemd, at least 3)'
complete -c vhost-user-zram -l create -d 'Make the disk\'s state if there is none; one that is there is opened, as without this'
complete -c vhost-user-zram -l read-only -d 'Refuse all writes'
complete -c vhost-user-zram -l mlock -d 'Lock the disk\'s pages in memory, so that the host never swaps them out. RLIMIT_MEMLOCK has to allow all of their address space: set it to infinity'
complete -c vhost-user-zram -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost-user-zram -s V -l version -d 'Print version'
