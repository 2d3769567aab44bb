//! What the kernel makes of it.

mod caching;
mod ends;
mod files;
mod locks;
mod notifier;

type Test = (&'static str, fn());

pub(crate) const ALL: &[Test] = &[
    ("a_mount_is_as_asked_for", files::a_mount_is_as_asked_for),
    ("files_are_used", files::files_are_used),
    ("long_writes_come_whole", files::long_writes_come_whole),
    ("attributes_arrive", files::attributes_arrive),
    ("xattrs_arrive", files::xattrs_arrive),
    ("listings_tell_of_files", files::listings_tell_of_files),
    ("links_and_special_files", files::links_and_special_files),
    ("less_usual_calls", files::less_usual_calls),
    ("nameless_files_get_names", files::nameless_files_get_names),
    (
        "what_is_cached_is_not_asked",
        caching::what_is_cached_is_not_asked,
    ),
    ("content_is_dropped", caching::content_is_dropped),
    ("attributes_are_dropped", caching::attributes_are_dropped),
    ("names_are_dropped", caching::names_are_dropped),
    ("names_expire", caching::names_expire),
    ("removed_names_are_gone", caching::removed_names_are_gone),
    (
        "stored_content_is_not_read",
        caching::stored_content_is_not_read,
    ),
    (
        "unknown_nodes_are_said_to_be",
        caching::unknown_nodes_are_said_to_be,
    ),
    (
        "the_kernel_forgets_what_it_was_told",
        caching::the_kernel_forgets_what_it_was_told,
    ),
    ("whole_file_locks", locks::whole_file_locks),
    ("record_locks", locks::record_locks),
    (
        "a_wait_for_a_lock_is_interrupted",
        locks::a_wait_for_a_lock_is_interrupted,
    ),
    (
        "an_unmounted_device_is_gone",
        ends::an_unmounted_device_is_gone,
    ),
    (
        "waiting_requests_end_with_the_mount",
        ends::waiting_requests_end_with_the_mount,
    ),
    ("a_barrier_is_reached", notifier::a_barrier_is_reached),
    (
        "the_notifier_waits_instead_of_us",
        notifier::the_notifier_waits_instead_of_us,
    ),
    ("the_notifier_retries", notifier::the_notifier_retries),
    ("the_notifier_ends", notifier::the_notifier_ends),
];

/// Those that need a second user, and a root that may make device files.
pub(crate) const OUTSIDE: &[Test] = &[
    ("privileges_are_killed", files::privileges_are_killed),
    (
        "devices_keep_their_numbers",
        files::devices_keep_their_numbers,
    ),
    ("it_reads_further_ahead", files::it_reads_further_ahead),
];
