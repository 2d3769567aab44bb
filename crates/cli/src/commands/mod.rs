//! One file per command.

pub(crate) mod boot;
pub(crate) mod boot_service;
pub(crate) mod cp;
pub(crate) mod demo;
pub(crate) mod disk;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod head;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod jobs;
pub(crate) mod keeper;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod machine;
pub(crate) mod make;
pub(crate) mod net;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod ps;
pub(crate) mod rack;
pub(crate) mod run;
pub(crate) mod up;
pub(crate) mod view;
pub(crate) mod wait;
pub(crate) mod which;
