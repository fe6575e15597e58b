complete -c vhost-user-zram -l config -d 'Read options from FILE, in TOML: a line `NAME = VALUE` for each, with the long name of the option, such as size = "4G" or mlock = true. An option on the command line beats FILE; --NAME=false turns off a flag that is true there. SIGHUP has FILE read again, and changes --mem-limit, --host-reserve, --log-level and the rate limits' -r -F
complete -c vhost-user-zram -l socket-path -d 'Listen on a Unix socket at PATH. A stale socket is replaced. A socket that the service manager passes under the name vhost-user (systemd\'s FileDescriptorName=) takes its place, and PATH is not made' -r -F
complete -c vhost-user-zram -l socket-mode -d 'Permissions of the socket, in octal. Connecting requires write permission. At no time does the socket have more permissions, whatever the umask [default: 600, or 660 with --socket-group]' -r
complete -c vhost-user-zram -l socket-owner -d 'Owner of the socket, by name or number [default: the daemon\'s user]' -r
complete -c vhost-user-zram -l socket-group -d 'Group of the socket, by name or number, such as kvm for the QEMU of libvirt [default: the daemon\'s group]' -r
complete -c vhost-user-zram -l fd -d 'Use the Unix socket that is inherited as descriptor N, either listening or connected' -r
complete -c vhost-user-zram -l api-socket -d 'Serve the control API (HTTP with JSON) on a Unix socket at PATH, for the daemon\'s user alone. A socket of the name `api` that the service manager passes on (LISTEN_FDS) is used instead' -r -F
complete -c vhost-user-zram -l name -d 'Name of the disk in the log and in the names of threads: up to 64 letters, digits, \'.\', \'_\' and \'-\' [default: the file name of --socket-path without its extension, else that of --state-dir]' -r
complete -c vhost-user-zram -l size -d 'Size of the disk in bytes, or with a suffix K, M, G or T (powers of 1024). Rounded up to a multiple of 4096 bytes; at most 16376G (8G less than 16T). An existing disk grows to it; one that has grown beyond it keeps its size' -r
complete -c vhost-user-zram -l block-size -d 'Logical block size of the disk, 512 or 4096 bytes. Most images are made for 512, and a BIOS boots only from that. With 4096 each write is of whole pages [default: 512 with --load, else 4096; an existing disk keeps its own]' -r
complete -c vhost-user-zram -l state-dir -d 'Keep the disk in files in DIR, so that it outlives the daemon: the next one with the same DIR continues with it. DIR must be on a tmpfs, such as /run. Only the daemon\'s user has access' -r -F
complete -c vhost-user-zram -l state-owner -d 'Accept a state whose directory and files belong to the user with this number. Without this option they must belong to the daemon\'s user' -r
complete -c vhost-user-zram -l load -d 'Load the raw image FILE, a regular file or a block device, into the disk at the start. A disk with a state is loaded only when the state is created' -r -F
complete -c vhost-user-zram -l load-format -d 'Format of the image of --load: auto refuses a file that begins like one of a format other than raw (qcow2, VMDK, gzip, zstd and others); raw loads the bytes as they are' -r
complete -c vhost-user-zram -l algorithm -d 'Compression algorithm of new pages: lz4 or lz4(acceleration=N), lz4-flex, lz4hc or lz4hc(level=N), zstd or zstd(level=N), deflate or deflate(level=N,winbits=N), or lzo. Pages that a state has already are read whatever compressed them' -r
complete -c vhost-user-zram -l num-queues -d 'Maximum number of virtqueues of a guest, 1 to 64. An unused virtqueue costs nothing' -r
complete -c vhost-user-zram -l queue-size -d 'Maximum size of a virtqueue: a power of two, 2 to 32768 descriptors. The protocol does not tell front ends, so one whose queues are larger is refused' -r
complete -c vhost-user-zram -l queue-threads -d 'Maximum number of threads that serve the virtqueues. A thread starts with the first of its queues [default: the number of CPUs]' -r
complete -c vhost-user-zram -l poll-us -d 'Longest time in microseconds for which a queue thread polls its empty virtqueues before it sleeps: a request that comes within it costs no kick and no wake-up. The thread polls only while that pays, and an idle disk is not polled. 0 means never' -r
complete -c vhost-user-zram -l serial -d 'Serial number of the disk, up to 20 bytes' -r
complete -c vhost-user-zram -l mem-limit -d 'Maximum memory of the compressed pages and the slot table (8 bytes a page, or 12 with a state, in units of 512 pages), in bytes or with a suffix. Writes that need more fail. 0 means no limit' -r
complete -c vhost-user-zram -l read-iops -d 'Maximum number of read requests a second, of all virtqueues together. Requests beyond it wait, and no virtqueue gets more of it than another one that needs as much. 0 means no limit' -r
complete -c vhost-user-zram -l read-bps -d 'Maximum number of bytes read a second, in bytes or with a suffix. 0 means no limit' -r
complete -c vhost-user-zram -l write-iops -d 'Maximum number of write requests a second, discards and write-zeroes included. 0 means no limit' -r
complete -c vhost-user-zram -l write-bps -d 'Maximum number of bytes written a second, in bytes or with a suffix. Discards and write-zeroes have no bytes. 0 means no limit' -r
complete -c vhost-user-zram -l rate-burst-ms -d 'What an idle disk saves up of these limits for a burst, as milliseconds of them' -r
complete -c vhost-user-zram -l engine -d 'Where pages are compressed: inline (in the queue\'s thread), offload (in worker threads), or auto (in worker threads if the codec is slow, or if the request is large and workers are idle) [default: auto, or offload with --engine-model]' -r
complete -c vhost-user-zram -l engine-workers -d 'Number of worker threads that compress [default: one for each CPU, or one less if the threads of the queues compress, too]' -r
complete -c vhost-user-zram -l engine-queue -d 'Maximum number of pages that wait for a worker' -r
complete -c vhost-user-zram -l engine-cpus -d 'CPUs on which the workers run, such as 2-3,6 [default: all]' -r
complete -c vhost-user-zram -l engine-model -d 'Experimental: make the workers behave like a device, such as latency=50us,per-kib=5us,reorder=8,refuse=10%,fail=1%,corrupt=0.1%,hang=0.1%,die=0.1%,timeout=100ms,seed=1. Implies --engine offload unless that option is given' -r
complete -c vhost-user-zram -l host-reserve -d 'Memory of the host, or of the daemon\'s control group, that stays free, in bytes or with a suffix. Writes that need it fail [default: a 32nd of that memory, at most 512M]' -r
complete -c vhost-user-zram -l memory-dir -d 'Keep the disk in unlinked files in DIR, which must be on a tmpfs. The size of the tmpfs limits the disk. Without this option the disk is in anonymous memory' -r -F
complete -c vhost-user-zram -l watchdog -d 'Report requests that take longer than this, in the log and as `stalled_requests` in the statistics. 0 means never' -r
complete -c vhost-user-zram -l watchdog-fail -d 'Fail requests that wait longer than this with an I/O error, counted as `expired_requests`. Must be more than --watchdog. 0 means never. Time in which the daemon was stopped, or suspended with its host, does not count' -r
complete -c vhost-user-zram -l log-level -d 'Level of the log on stderr: off, error, warn, info, debug or trace' -r
complete -c vhost-user-zram -l check-config -d 'Check the options, those of --config included, print a summary of them and exit. Nothing else is looked at: not whether files, directories or users exist'
complete -c vhost-user-zram -l print-capabilities -d 'Print the capabilities of this back end as JSON, and exit. All other options are ignored'
complete -c vhost-user-zram -l fd-store -d 'Keep the disk in memory whose descriptors the service manager stores for the next daemon (systemd\'s FileDescriptorStoreMax=, at least 3)'
complete -c vhost-user-zram -l create -d 'Create the disk\'s state if it does not exist. An existing one is opened, as without this option'
complete -c vhost-user-zram -l read-only -d 'Refuse all writes'
complete -c vhost-user-zram -l access-times -d 'Keep for each page when it was last accessed, in 2 bytes beside the slot table, so that pages can be marked as idle by their age'
complete -c vhost-user-zram -l mlock -d 'Lock the disk\'s pages in memory, so that the host never swaps them out. RLIMIT_MEMLOCK must allow their whole address space: set it to infinity'
complete -c vhost-user-zram -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost-user-zram -s V -l version -d 'Print version'
