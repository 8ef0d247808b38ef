//! Images, layers and containers: `image/devicemapper` and `containers`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::device::{is_hash, name_of};
use crate::directory::{Directory, JSON_LIMIT, LARGE_JSON_LIMIT};
use crate::{Device, DeviceName, DeviceState, Finding};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Image {
    /// Digest of its configuration: 64 hexadecimal digits.
    pub id: String,
    /// `name:tag`, in order.
    pub tags: Vec<String>,
    /// Chain ids of its layers, the lowest first.
    pub layers: Vec<String>,
    /// The device of the uppermost layer, if its layer is there.
    pub device: Option<DeviceName>,
}

/// A read-only layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Layer {
    /// Its chain id.
    pub id: String,
    /// Chain id of the layer below it.
    pub parent: Option<String>,
    /// Its device.
    pub device: Option<DeviceName>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name, if its configuration can be read.
    pub name: Option<String>,
    /// The image's name in its configuration, or else its id.
    pub image: Option<String>,
    /// Its device.
    pub device: Option<DeviceName>,
    /// The device of its init layer.
    pub init: Option<DeviceName>,
    /// Chain id of the image's uppermost layer.
    pub layer: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Repositories {
    #[serde(rename = "Repositories")]
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct ImageFile {
    rootfs: Option<RootFs>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct ContainerFile {
    #[serde(default, rename = "Name")]
    name: String,
    #[serde(default, rename = "Image")]
    image: String,
    #[serde(default, rename = "Driver")]
    driver: String,
    #[serde(rename = "Config")]
    config: Option<ContainerConfig>,
}

#[derive(Debug, Deserialize)]
struct ContainerConfig {
    #[serde(default, rename = "Image")]
    image: String,
}

/// What `image` and `containers` say.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub(crate) images: Vec<Image>,
    pub(crate) layers: BTreeMap<String, Layer>,
    pub(crate) containers: Vec<Container>,
}

impl Layers {
    pub(crate) fn read(root: &Directory, findings: &mut Vec<Finding>) -> Self {
        let layers = read_layers(root, findings);
        let images = read_images(root, &layers, findings);
        let containers = read_containers(root, &layers, findings);
        Self { images, layers, containers }
    }

    /// Sets the parents of the devices.
    pub(crate) fn link(&self, devices: &mut BTreeMap<DeviceName, Device>, findings: &mut Vec<Finding>) {
        let of_layer = |id: &String| self.layers.get(id).and_then(|layer| layer.device.clone());
        let (mut parents, mut owners) = (BTreeMap::new(), BTreeMap::new());
        let mut add = |owner: String, device: &Option<DeviceName>, parent: Option<DeviceName>| {
            let Some(device) = device else { return };
            if !devices.contains_key(device) {
                let missing = format!("device {device}");
                findings.push(Finding::MissingReference { owner, missing });
            } else if let Some(first) = owners.get(device).cloned() {
                findings.push(Finding::SameDevice { device: device.clone(), first, second: owner });
            } else {
                owners.insert(device.clone(), owner);
                parents.extend(parent.map(|parent| (device.clone(), parent)));
            }
        };
        for layer in self.layers.values() {
            let parent = layer.parent.as_ref().map_or(Some(DeviceName::Base), of_layer);
            add(format!("layer {}", layer.id), &layer.device, parent);
        }
        for container in &self.containers {
            let owner = format!("container {}", container.id);
            let image = container.layer.as_ref().map_or(Some(DeviceName::Base), of_layer);
            add(owner.clone(), &container.init, image.clone());
            add(owner, &container.device, container.init.clone().or(image));
        }
        // Without `image` there is nobody to have one.
        let without = devices.values().filter(|it| {
            it.state == DeviceState::Ok
                && matches!(it.name, DeviceName::Hash(_))
                && !owners.contains_key(&it.name)
        });
        let without = without.filter(|_| !self.layers.is_empty() || !self.containers.is_empty());
        findings.extend(without.map(|it| Finding::NoOwner { device: it.name.clone() }));
        for device in cut_loops(&mut parents) {
            findings.push(Finding::DeviceLoop { device });
        }
        for (name, parent) in parents {
            if let Some(device) = devices.get_mut(&name) {
                device.parent = Some(parent);
            }
        }
    }
}

fn read_layers(root: &Directory, findings: &mut Vec<Finding>) -> BTreeMap<String, Layer> {
    let mut layers = BTreeMap::new();
    let Some(directory) = root.below("image/devicemapper/layerdb/sha256", findings) else { return layers };
    for id in hashes(&directory, findings) {
        let Some(layer) = directory.below(&id, findings) else { continue };
        let parent = digest(&layer, "parent", findings);
        let device = device(&layer, "cache-id", findings);
        layers.insert(id.clone(), Layer { id, parent, device });
    }
    let mut parents = BTreeMap::new();
    for layer in layers.values() {
        if let Some(parent) = layer.parent.clone() {
            if !layers.contains_key(&parent) {
                findings.push(Finding::MissingParent { layer: layer.id.clone(), parent: parent.clone() });
            }
            parents.insert(layer.id.clone(), parent);
        }
    }
    for id in cut_loops(&mut parents) {
        if let Some(layer) = layers.get_mut(&id) {
            layer.parent = None;
        }
        findings.push(Finding::LayerLoop { layer: id });
    }
    layers
}

fn read_images(
    root: &Directory,
    layers: &BTreeMap<String, Layer>,
    findings: &mut Vec<Finding>,
) -> Vec<Image> {
    let Some(directory) = root.below("image/devicemapper", findings) else { return Vec::new() };
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let repositories: Option<Repositories> = directory.json("repositories.json", LARGE_JSON_LIMIT, findings);
    let names = repositories.into_iter().flat_map(|file| file.repositories.into_values().flatten());
    for (tag, id) in names {
        match hash_of(&id) {
            // A reference by digest is no tag.
            _ if tag.contains('@') => {}
            Some(id) if is_name(&tag) => tags.entry(id.to_owned()).or_default().push(tag),
            _ => {
                let file = directory.path("repositories.json");
                findings.push(Finding::bad_value(file, "tag", &format!("{tag}: {id}")));
            }
        }
    }
    let mut images = BTreeMap::new();
    if let Some(contents) = directory.below("imagedb/content/sha256", findings) {
        for id in hashes(&contents, findings) {
            let Some(file): Option<ImageFile> = contents.json(&id, LARGE_JSON_LIMIT, findings) else {
                continue;
            };
            let diff_ids = file.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
            let chain = match chain_ids(&diff_ids) {
                Ok(chain) => chain,
                Err(diff_id) => {
                    findings.push(Finding::bad_value(contents.path(&id), "diff id", diff_id));
                    continue;
                }
            };
            if let Some(missing) = chain.iter().find(|id| !layers.contains_key(*id)) {
                let (owner, missing) = (format!("image {id}"), format!("layer {missing}"));
                findings.push(Finding::MissingReference { owner, missing });
            }
            let device = chain.last().and_then(|id| layers.get(id)?.device.clone());
            let tags = tags.remove(&id).unwrap_or_default();
            images.insert(id.clone(), Image { id, tags, layers: chain, device });
        }
    }
    for (id, tags) in tags {
        let (owner, missing) = (format!("tag {}", tags.join(", ")), format!("image {id}"));
        findings.push(Finding::MissingReference { owner, missing });
    }
    images.into_values().collect()
}

fn read_containers(
    root: &Directory,
    layers: &BTreeMap<String, Layer>,
    findings: &mut Vec<Finding>,
) -> Vec<Container> {
    let mounts = root.below("image/devicemapper/layerdb/mounts", findings);
    let configs = root.below("containers", findings);
    let mut ids = BTreeSet::new();
    for directory in [&mounts, &configs].into_iter().flatten() {
        ids.extend(hashes(directory, findings));
    }
    let mut containers = Vec::new();
    for id in ids {
        let mount = mounts.as_ref().and_then(|directory| directory.below(&id, findings));
        let config = configs.as_ref().and_then(|directory| directory.below(&id, findings));
        let path = config.as_ref().map(|directory| directory.path("config.v2.json"));
        let config: Option<ContainerFile> =
            config.and_then(|directory| directory.json("config.v2.json", JSON_LIMIT, findings));
        // Another storage driver's.
        if mount.is_none() && config.as_ref().is_none_or(|file| file.driver != "devicemapper") {
            continue;
        }
        let mut named = |what, text: Option<&str>| {
            let text = text.filter(|text| !text.is_empty())?;
            if !is_name(text) {
                findings.push(Finding::bad_value(path.clone().unwrap_or_default(), what, text));
                return None;
            }
            Some(text.to_owned())
        };
        let config = config.as_ref();
        let name = named("Name", config.map(|file| file.name.strip_prefix('/').unwrap_or(&file.name)));
        let image = named("Config.Image", config.and_then(|file| Some(file.config.as_ref()?.image.as_str())));
        let image = image.or_else(|| named("Image", config.map(|file| file.image.as_str())));
        let mut container = Container { id, name, image, device: None, init: None, layer: None };
        if let Some(mount) = mount {
            container.device = device(&mount, "mount-id", findings);
            container.init = device(&mount, "init-id", findings);
            container.layer = digest(&mount, "parent", findings);
        }
        if let Some(layer) = container.layer.as_ref().filter(|layer| !layers.contains_key(*layer)) {
            let (owner, missing) = (format!("container {}", container.id), format!("layer {layer}"));
            findings.push(Finding::MissingReference { owner, missing });
        }
        containers.push(container);
    }
    containers
}

/// The entries whose names are hashes; the others become findings.
fn hashes(directory: &Directory, findings: &mut Vec<Finding>) -> Vec<String> {
    let mut names = directory.names(findings);
    names.retain(|name| {
        if !is_hash(name) {
            findings.push(Finding::UnknownFile { file: directory.path(name) });
        }
        is_hash(name)
    });
    names
}

/// What a file names.
fn parsed<T>(
    directory: &Directory,
    name: &'static str,
    findings: &mut Vec<Finding>,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let text = directory.text(name, findings)?;
    let value = parse(&text);
    if value.is_none() {
        findings.push(Finding::bad_value(directory.path(name), name, &text));
    }
    value
}

/// The chain id in a file.
fn digest(directory: &Directory, name: &'static str, findings: &mut Vec<Finding>) -> Option<String> {
    parsed(directory, name, findings, |text| hash_of(text).map(str::to_owned))
}

/// The device's name in a file.
fn device(directory: &Directory, name: &'static str, findings: &mut Vec<Finding>) -> Option<DeviceName> {
    parsed(directory, name, findings, |text| name_of(text).filter(|name| *name != DeviceName::Base))
}

/// The hash in a digest.
fn hash_of(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|hash| is_hash(hash))
}

/// The chain ids of layers, or a diff id that is none.
fn chain_ids(diff_ids: &[String]) -> Result<Vec<String>, &str> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let hash = hash_of(diff_id).ok_or(diff_id.as_str())?;
        let id = match chain.last() {
            None => hash.to_owned(),
            Some(parent) => {
                let digest = Sha256::digest(format!("sha256:{parent} sha256:{hash}"));
                digest.iter().map(|byte| format!("{byte:02x}")).collect()
            }
        };
        chain.push(id);
    }
    Ok(chain)
}

/// Whether a text can be the name of an image or container. Such a text can be printed.
fn is_name(text: &str) -> bool {
    (1..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Removes a link of each loop, and returns where.
fn cut_loops<K: Ord + Clone>(parents: &mut BTreeMap<K, K>) -> Vec<K> {
    let (mut done, mut cut) = (BTreeSet::new(), Vec::new());
    for start in parents.keys().cloned().collect::<Vec<_>>() {
        let (mut path, mut at) = (BTreeSet::new(), start);
        while !done.contains(&at) && path.insert(at.clone()) {
            match parents.get(&at) {
                Some(parent) if path.contains(parent) => {
                    parents.remove(&at);
                    cut.push(at.clone());
                    break;
                }
                Some(parent) => at = parent.clone(),
                None => break,
            }
        }
        done.append(&mut path);
    }
    cut
}
