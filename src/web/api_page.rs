//! `/docs`: the API, readable. Made from `docs/openapi.yaml`, so that there is one text.

use std::sync::LazyLock;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

/// The description of the API, in `OpenAPI` 3.1.
pub const OPENAPI: &str = include_str!("../../docs/openapi.yaml");

const STYLE: &str = include_str!("api_page.css");
const METHODS: &[&str] = &["get", "post", "put", "patch", "delete"];

/// The page. Needs nothing from outside: no script, no font, no image.
pub fn api_page() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        // A test parses it; a page that says nothing is still better than a replica that panics.
        let spec = serde_yaml_ng::from_str(OPENAPI).unwrap_or(Value::Null);
        page(&Spec(spec)).into_string()
    });
    &PAGE
}

struct Spec(Value);

impl Spec {
    /// What a `$ref` refers to, else the value itself.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(name) = value["$ref"].as_str() else { return value };
        name.strip_prefix('#').and_then(|pointer| self.0.pointer(pointer)).unwrap_or(value)
    }

    /// Every operation of a tag: path, method, the path's item and the operation.
    fn operations<'a>(&'a self, tag: &'a str) -> impl Iterator<Item = Operation<'a>> {
        self.0["paths"].as_object().into_iter().flatten().flat_map(move |(path, item)| {
            METHODS.iter().filter_map(move |&method| {
                let operation = item.get(method)?;
                let tagged = operation["tags"].as_array()?.iter().any(|t| t == tag);
                tagged.then_some(Operation { path, method, item, operation })
            })
        })
    }
}

#[derive(Clone, Copy)]
struct Operation<'a> {
    path: &'a str,
    method: &'a str,
    item: &'a Value,
    operation: &'a Value,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn markdown(source: &str) -> Markup {
    let mut out = String::new();
    pulldown_cmark::html::push_html(&mut out, pulldown_cmark::Parser::new(source));
    PreEscaped(out)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn page(spec: &Spec) -> Markup {
    let info = &spec.0["info"];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (text(&info["title"])) " API" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                nav {
                    a.home href="/" { (text(&info["title"])) }
                    @for tag in list(&spec.0["tags"]) {
                        @let name = text(&tag["name"]);
                        h2 { (name) }
                        @for op in spec.operations(name) {
                            a href={ "#" (text(&op.operation["operationId"])) } {
                                (text(&op.operation["summary"]))
                            }
                        }
                    }
                }
                main {
                    h1 { (text(&info["title"])) " API " small { (text(&info["version"])) } }
                    (markdown(text(&info["description"])))
                    p { "For programs: " a href="/api/v1/openapi.yaml" { "openapi.yaml" } }
                    @for tag in list(&spec.0["tags"]) {
                        @let name = text(&tag["name"]);
                        h2 { (name) }
                        (markdown(text(&tag["description"])))
                        @for op in spec.operations(name) { (operation(spec, op)) }
                    }
                }
            }
        }
    }
}

fn operation(spec: &Spec, op: Operation<'_>) -> Markup {
    let Operation { path, method, item, operation } = op;
    let parameters: Vec<&Value> = list(&item["parameters"])
        .chain(list(&operation["parameters"]))
        .map(|p| spec.resolve(p))
        .collect();
    html! {
        section id=(text(&operation["operationId"])) {
            h3 { span.method.(method) { (method.to_uppercase()) } " " code { (path) } }
            p.summary { (text(&operation["summary"])) }
            (markdown(text(&operation["description"])))
            @if !parameters.is_empty() {
                table {
                    thead { tr { th { "parameter" } th { "in" } th { "value" } th { } } }
                    tbody {
                        @for p in parameters {
                            tr {
                                td { code { (text(&p["name"])) } }
                                td { (text(&p["in"])) }
                                td { (kind(spec, &p["schema"])) }
                                td { (markdown(text(&p["description"]))) }
                            }
                        }
                    }
                }
            }
            @for (title, example) in examples(spec, &operation["requestBody"]) {
                h4 { "Request" @if let Some(title) = title { ", " (title) } }
                pre { (pretty(example)) }
            }
            @if let Some(schema) = object_of(spec, &operation["requestBody"]) {
                table {
                    thead { tr { th { "field" } th { "value" } th { } } }
                    tbody {
                        @for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                            tr {
                                td {
                                    code { (name) }
                                    @if list(&schema["required"]).any(|r| r == name.as_str()) { " *" }
                                }
                                td { (kind(spec, field)) }
                                td { (markdown(text(&field["description"]))) }
                            }
                        }
                    }
                }
            }
            h4 { "Answers" }
            table {
                tbody {
                    @for (status, response) in operation["responses"].as_object().into_iter().flatten() {
                        @let response = spec.resolve(response);
                        tr {
                            td.status { (status) }
                            td {
                                (markdown(text(&response["description"])))
                                @for (_, example) in examples(spec, response) { pre { (pretty(example)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The examples of a body, with their names.
fn examples<'a>(spec: &'a Spec, body: &'a Value) -> Vec<(Option<&'a str>, &'a Value)> {
    let mut found = Vec::new();
    for media in body["content"].as_object().into_iter().flat_map(|c| c.values()) {
        found.extend(media.get("example").map(|example| (None, example)));
        for (name, example) in media["examples"].as_object().into_iter().flatten() {
            found.push((Some(name.as_str()), &spec.resolve(example)["value"]));
        }
    }
    found
}

/// The object that a request holds, or each item of an array of them.
fn object_of<'a>(spec: &'a Spec, body: &'a Value) -> Option<&'a Value> {
    let schema = spec.resolve(body.get("content")?.get("application/json")?.get("schema")?);
    let first = schema["oneOf"].get(0).map_or(schema, |first| spec.resolve(first));
    let first = first["allOf"].get(0).map_or(first, |part| spec.resolve(part));
    first.get("properties").map(|_| first)
}

/// A schema in a few words.
fn kind(spec: &Spec, schema: &Value) -> String {
    let schema = spec.resolve(schema);
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(text).collect::<Vec<_>>().join(" · ");
    }
    if let Some(word) = schema["const"].as_str() {
        return word.to_owned();
    }
    if schema["oneOf"].is_array() {
        return list(&schema["oneOf"]).map(|s| kind(spec, s)).collect::<Vec<_>>().join(", or ");
    }
    let mut words = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        other => text(other).to_owned(),
    };
    if schema["items"].is_object() {
        words.push_str(" of ");
        words.push_str(&kind(spec, &schema["items"]));
    }
    for (key, sign) in [("minimum", "≥"), ("maximum", "≤"), ("default", "default")] {
        if !schema[key].is_null() {
            words.push_str(&format!(", {sign} {}", schema[key]));
        }
    }
    words
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_on_the_page() {
        let spec: Value = serde_yaml_ng::from_str(OPENAPI).unwrap();
        let page = api_page();
        let mut count = 0;
        for (path, item) in spec["paths"].as_object().unwrap() {
            for method in METHODS {
                let Some(operation) = item.get(method) else { continue };
                count += 1;
                let id = operation["operationId"].as_str().unwrap();
                assert!(page.contains(&format!("<section id=\"{id}\">")), "{method} {path}");
            }
        }
        assert!(count > 25, "{count}");
    }

    #[test]
    fn what_the_file_says_is_escaped() {
        let spec = serde_yaml_ng::from_str("{info: {title: '<script>'}, tags: [], paths: {}}");
        let page = page(&Spec(spec.unwrap())).into_string();
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
    }
}
