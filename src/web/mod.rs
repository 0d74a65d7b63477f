//! Pages for people, as HTML. Pure: data in, a page out.

mod api_page;

pub use api_page::{OPENAPI, api_page};
