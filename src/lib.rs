//! agent-fleet: a coordinator for a fleet of coding agents on one PostgreSQL.
//!
//! A forge issue becomes a task; the task is pushed to a host over SSH or pulled by an agent over HTTP, whichever can
//! take it first; a receipt closes it. Any number of replicas run side by side on one database.
//!
//! The map, and the one direction in which modules depend on each other:
//! `cli → api → web, coordinator → forge, execution, store → config, model`.
//!
//! | module | what it does |
//! |---|---|
//! | [`model`] | the words as pure types, and the one transition table |
//! | [`config`] | file, environment and flags into one checked [`config::Config`] |
//! | [`store`] | the only SQL: one function per file in `sql/`, the pool, migrations, the listener |
//! | [`execution`] | one attempt on a host: SSH and local executors, the run wrapper, CLI adapters, the prompt |
//! | [`forge`] | Forgejo: signatures, payloads, the rules that turn an issue into a task |
//! | [`coordinator`] | one loop a file: dispatcher, matchmaker, reaper, scheduler, membership, janitor |
//! | [`api`] | the only HTTP server: routes by noun, authentication, errors |
//! | [`web`] | pages for people, as HTML |
//! | [`cli`] | one subcommand a file |
//!
//! `metrics`, [`telemetry`] and [`traces`] stand beside these: everybody may count, time, log and trace.

pub mod api;
pub mod cli;
pub mod config;
pub mod coordinator;
pub mod execution;
pub mod forge;
mod metrics;
pub mod model;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod web;
